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
    "block": ("string", "notation of a layer (the row is norm + operator + residual); or embedding[...], head[...]"),
    "context": (
        "int32",
        "tokens read (prefill) or held (decode; 0 if they do not matter; at most the window)",
    ),
    "status": ("string", "slope; whole (no positive slope was found: long chain over its length); out_of_memory"),
    "latency_ms": (
        "float64",
        "time of one block: (T(long) - T(short)) / (long - short) of medians; null: no memory",
    ),
    "spread_ms": ("float64", "of latency_ms, from the interquartile ranges of T(long) and T(short)"),
    "overhead_ms": ("float64", "the part of a chain's time that does not grow with its length: 2 T(short) - T(long)"),
    "overhead_spread_ms": ("float64", "of overhead_ms, likewise"),
    "runs": ("int32", "samples of each chain that count (on a CPU the fastest tenth of those taken, on a GPU all)"),
    "short_chain": ("int32", "blocks in the short chain"),
    "long_chain": ("int32", "blocks in the long chain"),
    "working_set_mb": ("float64", "weights and state that one pass over the long chain touches, 1e6 bytes"),
    "workspace_mb": ("float64", "most memory a block takes besides weights and state, 1e6 bytes; null: not known"),
    "clock_mhz": ("float64", "SM clock while the long chain ran; null: not known"),
    "power_w": ("float64", "power of the board then; null: not known"),
    "throttle": ("string", "what held the clock down then (power, heat, ...); empty: nothing; null: not known"),
    "energy_mj": ("float64", "millijoules of one block for each token: power_w x latency_ms / tokens; null: not known"),
    "cache": ("string", "distinct weights: every block of a chain has its own; distinct rows: of one embedding table"),
    "cuda_graph": ("bool", "whether each chain ran as one CUDA graph"),
    "code": ("string", "digest of the code that was timed"),
}
SLOPE, WHOLE, OUT_OF_MEMORY = "slope", "whole", "out_of_memory"


@dataclass(frozen=True)
class Row:
    """One line of the file; `COLUMNS` says what each value means."""

    key: Key
    status: str
    latency_ms: float | None
    spread_ms: float
    overhead_ms: float
    overhead_spread_ms: float
    runs: int
    short_chain: int
    long_chain: int
    working_set_mb: float
    cache: str
    cuda_graph: bool
    code: str
    workspace_mb: float | None = None
    clock_mhz: float | None = None
    power_w: float | None = None
    throttle: str | None = None

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
