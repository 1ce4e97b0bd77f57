"""What a benchmark found: the schema of the JSON file, from which the printed table is derived."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Entry(_Part):
    """One implementation of what a comparison is about."""

    name: str
    role: Literal["ours", "baseline"]
    status: Literal["measured", "absent", "wrong"] = Field(
        description="absent: not installed, not for this device, or it failed; wrong: its results are off, not timed"
    )
    path: str = Field(default="", description="what computes it, and for ours why that was chosen")
    reason: str = Field(default="", description="why it is absent or wrong")
    error: float | None = Field(default=None, description="largest relative error against float64 on the same weights")
    median_us: float | None = Field(default=None, description="microseconds of one unit of work")
    iqr_us: float | None = Field(default=None, description="interquartile range of the samples")
    samples: int = 0
    mfu_percent: float | None = Field(default=None, description="FLOPs / time, of the device's bf16 peak")
    first_call_s: float | None = Field(default=None, description="wall time of its first call, compilation included")
    bandwidth_percent: float | None = Field(default=None, description="bytes / time, of the measured copy bandwidth")
    floor_ratio: float | None = Field(default=None, description="time over floor")


class Comparison(_Part):
    """Implementations of one thing: same weights and inputs, results compared first, samples taken in turn."""

    name: str
    case: dict[str, Any] = Field(description="sizes")
    tolerance: float = Field(description="of `error`")
    bytes: int | None = Field(default=None, description="weights and state read, recurrent state written; of one unit")
    floor_us: float | None = Field(default=None, description="bytes / measured copy bandwidth")
    flops: float | None = Field(default=None, description="of one unit")
    units: int = Field(default=1, description="units with weights of their own that one sample runs through")
    clock_mhz: float | None = Field(default=None, description="SM clock under this load")
    entries: list[Entry]
    best_baseline: str | None = Field(default=None, description="the fastest measured one")
    ratio: float | None = Field(default=None, description="time of ours over that of the best baseline")


class Ratio(_Part):
    """Tokens a second of one model over tokens a second of its reference, all sequences of a batch counted."""

    model: str
    reference: str
    speedup: float
    spread: float | None = Field(default=None, description="that it has from both interquartile ranges")


class Kernel(_Part):
    """All calls of one kernel in a training step."""

    name: str
    calls: int
    us: float = Field(description="microseconds of all its calls")
    percent: float = Field(description="of the time of all kernels")


class Pass(_Part):
    """One candidate of the training proxy, from job to score."""

    name: str
    phases: dict[str, float] = Field(description="seconds, each without the phases inside it; `steps` are the replays")
    seconds: float
    tokens: int
    tokens_per_s: float = Field(description="of `steps`")
    mfu_percent: float | None = Field(default=None, description="of the device's bf16 peak, during `steps`")
    memory_gb: float | None = Field(default=None, description="peak, 1e9 bytes")
    loss: float
    notes: list[str] = []


class Candidate(_Part):
    """Where the time of a candidate goes."""

    notation: str
    width: int
    vocab: int
    parameters: int
    batch: int
    sequence: int
    flops_per_token: float = Field(description="forward and backward")
    passes: list[Pass]
    kernels: list[Kernel] = Field(default=[], description="of one launched step, the most expensive first")


class Bandwidth(_Part):
    """A copy on this device in the same run; bytes read and bytes written both count."""

    bytes_per_s: float
    iqr_percent: float
    working_set_bytes: int


class BenchResult(_Part):
    """One run of `nfsearch bench`."""

    format: Literal["nfsearch.bench/1"] = "nfsearch.bench/1"
    suite: Literal["ops", "model", "training", "candidate"]
    provenance: dict[str, Any] = Field(
        description="device, driver, versions, clock, date, command; as of a latency table"
    )
    packages: dict[str, str | None] = Field(description="versions of the libraries that baselines use; null: absent")
    settings: dict[str, Any]
    bandwidth: Bandwidth
    seconds: float = Field(description="wall time so far")
    comparisons: list[Comparison]
    ratios: list[Ratio] = []
    candidate: Candidate | None = None

    @classmethod
    def load(cls, path: str | Path) -> BenchResult:
        """Reads a file. Raises ValueError if it is not one of these."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the whole file"
            raise ValueError(f"{path} is no benchmark result: {where}: {first['msg']}") from None

    def to_json(self) -> str:
        return self.model_dump_json(indent=1) + "\n"
