"""The `latency:` section of a config."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from nfsearch.latency_lut.agreement import Trust
from nfsearch.latency_lut.provenance import BUSY, CPU_IDENTITY, IDENTITY, KERNELS
from nfsearch.latency_lut.workload import Workload
from nfsearch.support.settings import Settings


class LatencySettings(Settings):
    """On what, and for which passes, candidates are timed."""

    device: str = Field(
        default="auto",
        min_length=1,
        description="auto (the GPU if there is one), cpu, cuda, or the name of a device such as nvidia-h200",
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        default="auto", description="of weights and activations; auto = bfloat16 on CUDA, float32 on a CPU"
    )
    table: str = Field(
        default="auto",
        min_length=1,
        description="a latency table's path; auto = measured at the start, into the run's folder, or, where the device "
        "is not here, the one that nfsearch has of it",
    )
    accept: tuple[str, ...] = Field(
        default=(),
        description="how the table may differ from what is here: device, driver, torch, ...; kernels = rows that were "
        "timed with other code; busy = rows that were measured while something else used the machine",
    )
    workloads: dict[str, Workload] = Field(
        default_factory=lambda: {"tpot": Workload()},
        min_length=1,
        description="what is timed, by the name that objectives and limits use",
    )
    verify: int = Field(
        default=10,
        ge=0,
        description="random whole models that are measured to check the table's estimates; 0 = no whole model is "
        "measured, those of the front neither",
    )
    trust: Trust = Field(default_factory=Trust, description="when that check is good")

    @field_validator("workloads")
    @classmethod
    def _names(cls, workloads: dict[str, Workload]) -> dict[str, Workload]:
        for name in workloads:
            if not name.isidentifier():
                raise ValueError(f"{name!r} is not a name: letters, digits and underscores, no digit first")
        return workloads

    @field_validator("accept")
    @classmethod
    def _differences(cls, accept: tuple[str, ...]) -> tuple[str, ...]:
        for name in accept:
            if name not in (known := (*IDENTITY, *CPU_IDENTITY, KERNELS, BUSY)):
                raise ValueError(f"{name!r} is none of {', '.join(known)}")
        return accept

    def anchored(self) -> LatencySettings:
        """The same with the table's path made absolute, so that it means the same to every worker."""
        if self.table == "auto" or not Path(self.table).exists():
            return self
        return self.model_copy(update={"table": str(Path(self.table).resolve())})

    def dtype_on(self, kind: str) -> str:
        """The dtype on a device of this kind, "cpu" or "cuda"."""
        if self.dtype != "auto":
            return self.dtype
        return "bfloat16" if kind == "cuda" else "float32"
