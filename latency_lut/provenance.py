"""Where a latency table comes from. No torch is needed to read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

# Rows may be in one table only if all of these are equal. On a GPU, which replays graphs, its host is no part of the
# bargain: neither the processor nor Python. The version of nfsearch is none anywhere, since each row knows the digest
# of the code that it timed.
IDENTITY = ("device", "device_name", "driver", "cuda", "torch", "triton", "fla")
CPU_IDENTITY = ("cpu", "threads", "os", "python")
BUSY = "busy"  # how `latency.accept` calls rows that were measured while something else used the machine
KERNELS = "kernels"  # how `latency.accept` calls rows that were timed with other code than what is here


@dataclass(frozen=True)
class Provenance:
    """What was measured, on what, with which versions. `None` where it does not apply or could not be found out."""

    device: str  # short name: "nvidia-h200", or of the processor: "amd-epyc-9654"
    device_name: str  # as the driver or the system gives it
    kind: str  # "cuda" or "cpu"
    driver: str | None
    cuda: str | None
    torch: str
    triton: str | None
    fla: str | None  # fla-core, whose kernels serve prefill where it is installed
    python: str
    nfsearch: str
    os: str
    cpu: str
    threads: int  # torch's threads
    memory_gb: float | None  # of the GPU, 1e9 bytes
    clock_mhz: float | None  # SM clock under load, after the warm-up
    date: str  # of the first row, or of the build that last replaced rows of other code; UTC
    command: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Provenance:
        """The inverse of `to_dict`. Raises KeyError for a missing field."""
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    def differences(self, other: Provenance) -> dict[str, str]:
        """Why rows of `other` may not join rows of this one, by field: `torch 2.11, now 2.12`; empty where they may.

        Of another device nothing else is compared: its driver and versions say nothing about this one.
        """
        names = IDENTITY + (CPU_IDENTITY if self.kind == "cpu" else ())
        if self.device != other.device:
            names = ("device",)
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return {name: f"{name} {old}, now {new}" for name, old, new in pairs if old != new}
