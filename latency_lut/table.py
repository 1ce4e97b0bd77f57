"""The latency table: measured rows in a Parquet file, and the estimate of a whole model as their sum."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsearch.latency_lut.keys import Key, end_keys, keys_of, layer_key
from nfsearch.latency_lut.provenance import Provenance
from nfsearch.latency_lut.workload import Workload
from nfsearch.space.architecture import Architecture, Layer

if TYPE_CHECKING:
    import pandas
    import rich.table

SCHEMA_VERSION = 1
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
    "cache": ("string", "distinct weights: every block of a chain has its own; distinct rows: of one embedding table"),
    "cuda_graph": ("bool", "whether each chain ran as one CUDA graph"),
}
_META_SCHEMA, _META_PROVENANCE = b"nfsearch.latency_table", b"nfsearch.provenance"
SLOPE, WHOLE, OUT_OF_MEMORY = "slope", "whole", "out_of_memory"


class TableError(ValueError):
    """A latency table cannot be read, or does not hold what was asked for."""


class OutOfMemory(TableError):
    """The table says that a part of the model did not fit into the device's memory."""


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

    def record(self) -> dict[str, Any]:
        values = asdict(self)
        return {**values.pop("key"), **values}

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> Row:
        rest = {name: value for name, value in values.items() if name != "device"}
        key = Key(**{name: rest.pop(name) for name in Key.__dataclass_fields__})
        return cls(key, **rest)


@dataclass(frozen=True)
class Estimate:
    """Time of one forward pass of a whole model. `error` is twice the standard error that the spread of the rows
    leaves in their sum (about a 95 % interval of the measurement's noise; not of what a sum of blocks cannot see)."""

    seconds: float
    error: float


@dataclass
class LatencyTable:
    """Rows by key, all of one device. `path` is where it was read from or saved to, for messages."""

    provenance: Provenance
    rows: dict[Key, Row] = field(default_factory=dict)
    path: Path | None = None
    _prices: dict[Hashable, _Prices] = field(default_factory=dict, repr=False, compare=False)

    # --- the file ------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Raises TableError for a file that is missing, is not a latency table, is truncated, or has another schema."""
        import pyarrow
        import pyarrow.parquet

        path = Path(path)
        if not path.is_file():
            raise TableError(f"there is no latency table {path}; `nfsearch lut build CONFIG -o {path}` makes one")
        try:
            content = pyarrow.parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            with path.open("rb") as file:
                cut = file.read(4) == b"PAR1"
            state = "is damaged or cut short" if cut else "is not a Parquet file"
            raise TableError(f"{path} {state}: {str(error).splitlines()[0]}") from None
        metadata = content.schema.metadata or {}
        version = metadata.get(_META_SCHEMA, b"").decode(errors="replace")
        if not version:
            raise TableError(f"{path} is a Parquet file, but not a latency table of nfsearch")
        if version != str(SCHEMA_VERSION):
            raise TableError(f"{path} has version {version} of the table format; this nfsearch reads {SCHEMA_VERSION}")
        try:
            provenance = Provenance.from_dict(json.loads(metadata[_META_PROVENANCE]))
            rows = [Row.from_record(record) for record in content.select(list(COLUMNS)).to_pylist()]
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"{path} is not a complete latency table: {error}") from None
        return cls(provenance, {row.key: row for row in rows}, path)

    def save(self, path: str | Path) -> None:
        """Writes the Parquet file; a reader sees the old file or the new one, never a part."""
        import pyarrow
        import pyarrow.parquet

        schema = pyarrow.schema(
            [
                pyarrow.field(name, pyarrow.type_for_alias(kind), metadata={"help": text})
                for name, (kind, text) in COLUMNS.items()
            ],
            metadata={
                _META_SCHEMA: str(SCHEMA_VERSION),
                _META_PROVENANCE: json.dumps(self.provenance.to_dict(), indent=1),
            },
        )
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self._records(), schema), temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self.path = path

    def _records(self) -> list[dict[str, Any]]:
        return [{"device": self.provenance.device, **row.record()} for row in self.rows.values()]

    @property
    def frame(self) -> pandas.DataFrame:
        """The columns of the file, a line for each row."""
        import pandas

        return pandas.DataFrame(self._records(), columns=list(COLUMNS))

    def add(self, row: Row) -> None:
        self.rows[row.key] = row
        self._prices.clear()

    # --- what it holds -------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return str(self.path) if self.path else f"the table of {self.provenance.device}"

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those of `keys` that were not measured yet."""
        return [key for key in keys if key not in self.rows]

    def require(self, keys: Iterable[Key]) -> None:
        """Raises TableError, naming the command that measures them, if some of `keys` are missing."""
        if missing := self.missing(keys):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise TableError(
                f"{self.name} has no row for {missing[0]}{more}; "
                f"`nfsearch lut build CONFIG -o {self.path or 'TABLE'}` measures what is missing"
            )

    def require_device(self, device: str) -> None:
        """Raises TableError unless the table was measured on `device` (a short name, such as nvidia-h200)."""
        if device != self.provenance.device:
            raise TableError(
                f"{self.name} was measured on {self.provenance.device}, and the device asked for is {device}; times of "
                "one device say nothing about another: build a table on the device itself (`nfsearch lut build`)"
            )

    def row(self, key: Key) -> Row:
        """The row of `key`, which has a time. Raises TableError if it is missing, OutOfMemory if it did not fit."""
        self.require([key])
        row = self.rows[key]
        if row.latency_ms is None:
            raise OutOfMemory(f"{key} did not fit into the memory of {self.provenance.device_name}, says {self.name}")
        return row

    # --- estimates -----------------------------------------------------------------------------------------------

    def estimate(self, architecture: Architecture, workload: Workload, dtype: str | None = None) -> Estimate:
        """Embedding, layers, final norm and head, and the constant cost of a forward pass, summed.

        `dtype` may be left out where the table has only one. Raises TableError for a row that the table lacks, and
        OutOfMemory for one that did not fit. Takes microseconds: what was looked up once is kept.
        """
        a = architecture
        place = (a.width, a.vocab, a.meta_tokens, a.head_norm, workload, dtype)
        prices = self._prices.get(place)
        if prices is None:
            prices = self._prices[place] = _Prices(self, a, workload, dtype or self._only_dtype())
        counts: dict[Layer, int] = {}
        for layer in a.layers:
            counts[layer] = counts.get(layer, 0) + 1
        seconds, variance = prices.constant
        for layer, count in counts.items():
            time, error = prices.layers.get(layer) or prices.look_up(layer)
            seconds += count * time
            variance += (count * error) ** 2  # the same row: its error counts every time it is used
        return Estimate(seconds, 2 * math.sqrt(variance))

    def breakdown(self, architecture: Architecture, workload: Workload, dtype: str | None = None) -> dict[str, float]:
        """Seconds by part: what `estimate` adds up, the constant overhead included, largest first."""
        dtype = dtype or self._only_dtype()
        keys = keys_of(architecture, workload, dtype)
        parts = {key.block: n * (self.row(key).latency_ms or 0.0) / 1e3 for key, n in keys.items()}
        parts["overhead"] = self.overhead(workload, dtype)[0]
        return dict(sorted(parts.items(), key=lambda part: -part[1]))

    def overhead(self, workload: Workload, dtype: str) -> tuple[float, float]:
        """The constant cost of a forward pass in seconds, and its standard error: the median over the chains of this
        phase and batch of what did not grow with their length."""
        chains = [
            row
            for row in self.rows.values()
            if (row.key.phase, row.key.batch, row.key.dtype) == (workload.phase, workload.batch, dtype)
            and row.status == SLOPE
            and row.key.end is None
        ]
        if not chains:
            return 0.0, 0.0
        values = [row.overhead_ms / 1e3 for row in chains]
        return max(0.0, statistics.median(values)), standard_error(quartile_range(values), len(values))

    def _only_dtype(self) -> str:
        found = sorted({key.dtype for key in self.rows})
        if len(found) != 1:
            raise TableError(f"{self.name} has rows of {', '.join(found) or 'no dtype'}: say which dtype is meant")
        return found[0]

    def render(self) -> rich.table.Table:
        """For the terminal: a line for each block and workload, a column for each width, milliseconds and spread."""
        from nfsearch.latency_lut.render import render

        return render(self)


class _Prices:
    """What estimates at one width and workload need, looked up once: (seconds, standard error) of each layer."""

    def __init__(self, table: LatencyTable, architecture: Architecture, workload: Workload, dtype: str) -> None:
        a = architecture
        self.table, self.workload, self.dtype = table, workload, dtype
        self.width, self.meta_tokens = a.width, a.meta_tokens
        self.layers: dict[Layer, tuple[float, float]] = {}
        ends = end_keys(a.width, a.vocab, workload, dtype, a.meta_tokens, a.head_norm)
        parts = [self._price(key) for key in ends] + [table.overhead(workload, dtype)]
        self.constant = sum(time for time, _ in parts), sum(error**2 for _, error in parts)

    def look_up(self, layer: Layer) -> tuple[float, float]:
        price = self._price(layer_key(layer, self.width, self.workload, self.dtype, self.meta_tokens))
        self.layers[layer] = price
        return price

    def _price(self, key: Key) -> tuple[float, float]:
        row = self.table.row(key)
        assert row.latency_ms is not None
        return row.latency_ms / 1e3, standard_error(row.spread_ms, row.runs) / 1e3


def quartile_range(values: list[float]) -> float:
    """The range of the middle half; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def standard_error(spread: float, runs: int) -> float:
    """Of a median of `runs` values with the interquartile range `spread`, as if they were normally distributed."""
    return 0.93 * spread / math.sqrt(runs)  # sigma = IQR / 1.349; a median's standard error is 1.253 sigma / sqrt(n)
