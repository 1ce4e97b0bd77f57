"""One row of a latency table, and the columns of its file."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from nfsearch.latency_lut.keys import Key

COLUMNS = {
    "device": ("string", "short name of the device the row was measured on"),
    "phase": ("string", "decode: one token for each sequence; prefill: `context` tokens for each, from an empty state"),
    "dtype": ("string", "of weights and activations"),
    "batch": ("int32", "sequences"),
    "width": ("int32", "hidden size"),
    "block": (
        "string",
        "notation of a layer (the row is norm + operator + residual); or ends[...]: embedding, final norm, head and "
        "the constant cost of a pass",
    ),
    "context": (
        "int32",
        "tokens read (prefill) or held (decode; 0 if they do not matter; at most the window)",
    ),
    "others": ("int32", "layers of other work between one such block and the next while it was timed; under the ends"),
    "cache": (
        "string",
        "resident, between, streamed: all, some or none of what a pass touched stayed in the last cache until the "
        "next; vast: so much was touched that addresses had to be translated anew",
    ),
    "status": (
        "string",
        "measured; whole (no positive difference was found: a model's time over its layers); out_of_memory",
    ),
    "latency_ms": (
        "float64",
        "time of one block: what models of median time take longer by it, over the number of them; null: no memory",
    ),
    "spread_ms": ("float64", "of latency_ms, from the interquartile ranges of those times"),
    "runs": ("int32", "samples of each model that count (on a CPU the fastest tenth of those taken, on a GPU all)"),
    "layers": ("int32", "of the model that had all of them"),
    "working_set_mb": (
        "float64",
        "weights and state that one pass over that model touches, 1e6 bytes; on a GPU those of its layers alone, as "
        "the head's leave the cache first",
    ),
    "between_mb": ("float64", "of it, what other layers touch between one such block and the next"),
    "disturbance": (
        "float64",
        "by which share a piece of known work beside it was slower than at its best, or others used the processor",
    ),
    "workspace_mb": ("float64", "most memory a block takes besides weights and state, 1e6 bytes; null: not known"),
    "clock_mhz": ("float64", "SM clock while that model ran; null: not known"),
    "power_w": ("float64", "power of the board then; null: not known"),
    "throttle": ("string", "what held the clock down then (power, heat, ...); empty: nothing; null: not known"),
    "energy_mj": ("float64", "millijoules of one block for each token: power_w x latency_ms / tokens; null: not known"),
    "cuda_graph": ("bool", "whether each model ran as one CUDA graph"),
    "code": ("string", "digest of the code that was timed"),
}
MEASURED, WHOLE, OUT_OF_MEMORY = "measured", "whole", "out_of_memory"
QUIET = 0.25  # the most disturbance that a time is believed with


@dataclass(frozen=True)
class Row:
    """One line of the file; `COLUMNS` says what each value means."""

    key: Key
    status: str
    latency_ms: float | None
    spread_ms: float
    runs: int
    layers: int
    working_set_mb: float
    between_mb: float
    disturbance: float
    cuda_graph: bool
    code: str
    workspace_mb: float | None = None
    clock_mhz: float | None = None
    power_w: float | None = None
    throttle: str | None = None

    @property
    def disturbed(self) -> bool:
        """Whether something else used the machine so much that the time may be wrong."""
        return self.disturbance > QUIET

    @property
    def energy_mj(self) -> float | None:
        if self.power_w is None or self.latency_ms is None:
            return None
        return self.power_w * self.latency_ms / self.key.tokens

    @property
    def error_ms(self) -> float:
        """Standard error of `latency_ms`."""
        return standard_error(self.spread_ms, self.runs)

    def record(self) -> dict[str, Any]:
        """The values of the columns, `device` apart."""
        values = asdict(self)
        return {**values.pop("key"), **values, "energy_mj": self.energy_mj}

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Row:
        """The inverse of `record`. Raises KeyError for a missing value."""
        key = Key(**{field.name: values[field.name] for field in fields(Key)})
        return cls(key, **{field.name: values[field.name] for field in fields(cls) if field.name != "key"})


def quartile_range(values: list[float]) -> float:
    """The range of the middle half; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def standard_error(spread: float, runs: int) -> float:
    """Of a median of `runs` values with the interquartile range `spread`, as if they were normally distributed."""
    return 0.93 * spread / math.sqrt(runs)  # sigma = IQR / 1.349; a median's standard error is 1.253 sigma / sqrt(n)
