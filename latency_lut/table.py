"""The latency table: measured rows of one device, and what whole models cost by them."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsearch.latency_lut.bundled import folder
from nfsearch.latency_lut.estimator import Estimate, Prices, priced
from nfsearch.latency_lut.files import TableError, read_tables, write_tables
from nfsearch.latency_lut.keys import Key, Part, end_parts, layer_parts
from nfsearch.latency_lut.provenance import Provenance
from nfsearch.latency_lut.rows import SLOPE, Row, quartile_range, standard_error
from nfsearch.latency_lut.workload import Workload
from nfsearch.space.architecture import Architecture

if TYPE_CHECKING:
    import rich.table


_USABLE = 0.95  # of a device's memory; the rest is the driver's, and what allocation wastes


class OutOfMemory(TableError):
    """A part of the model did not fit into the device's memory, says the table; or no batch of a throughput does."""


@dataclass
class LatencyTable:
    """Rows by key, all of one device. `path` is where it was read from or saved to, for messages."""

    provenance: Provenance
    rows: dict[Key, Row] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)
    _prices: dict[Hashable, Prices] = field(default_factory=dict, repr=False, compare=False)
    _grids: dict[Key, list[int]] = field(default_factory=dict, repr=False, compare=False)

    # --- the file ------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, device: str | None = None) -> LatencyTable:
        """The table of `device` (a short name, such as nvidia-h200) in a file; the only one where none is named.

        Raises TableError for a file that is missing, is no latency table, is truncated, has another schema, or holds
        no table of that device.
        """
        tables = read_tables(Path(path))
        held = ", ".join(tables)
        if device is None:
            if len(tables) != 1:
                raise TableError(f"{path} holds tables of {held or 'no device'}: say which device is meant")
            return next(iter(tables.values()))
        if device not in tables:
            raise TableError(
                f"{path} was measured on {held}, and the device asked for is {device}; times of one device say nothing "
                f"about another: `nfsearch lut build CONFIG -o TABLE` on {device} itself makes a table, and "
                "`latency.accept: [device]` takes this one all the same"
            )
        return tables[device]

    def save(self, path: str | Path) -> None:
        """Writes a file of this table alone; a reader sees the old file or the new one, never a part."""
        write_tables(path, [self])
        self.path = Path(path)

    def records(self) -> list[dict[str, Any]]:
        """A mapping of the file's columns for each row."""
        return [{"device": self.provenance.device, **row.record()} for row in self.rows.values()]

    def add(self, row: Row) -> None:
        self.rows[row.key] = row
        self._prices.clear()
        self._grids.clear()

    # --- what it holds -------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """For messages."""
        if self._shipped:
            return f"nfsearch's table of {self.provenance.device}"
        return str(self.path) if self.path else f"the table of {self.provenance.device}"

    @property
    def _shipped(self) -> bool:
        return self.path is not None and self.path.parent == folder()

    @property
    def _build(self) -> str:
        command = f"`nfsearch lut build CONFIG -o {'TABLE.parquet' if self._shipped else self.path or 'TABLE'}`"
        return f"{command} on {self.provenance.device}" if self._shipped else command

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those of `keys` that were not measured yet."""
        return [key for key in keys if key not in self.rows]

    def require(self, keys: Iterable[Key]) -> None:
        """Raises TableError, naming the command that measures them, if some of `keys` can neither be looked up nor
        lie between contexts that were measured."""
        problems = []
        for key in self.missing(keys):
            try:
                self.grid(Part(key, key.context, 1))
            except TableError as problem:
                problems.append(str(problem))
        if problems:
            raise TableError(problems[0] + (f" (and {len(problems) - 1} more are missing)" if problems[1:] else ""))

    def require_origin(self, device: str, here: Provenance, accept: Collection[str] = ()) -> None:
        """Raises TableError unless the table serves for `device` (a short name) and this machine's code.

        It has to be of that device and of the kernels that are here; where the device itself is here, of its driver
        and versions too. `accept` names the differences that are taken as they are: device, kernels, driver, torch, ...
        """
        found = self.provenance.differences(here)
        found.pop("device", None)
        if self.provenance.device != device:
            found["device"] = f"device {self.provenance.device}, asked for {device}"
        refused = {name: text for name, text in found.items() if name not in accept}
        if refused:
            raise TableError(
                f"{self.name} does not serve here, it was made with {'; '.join(refused.values())}. "
                f"`nfsearch lut build CONFIG -o NEW_TABLE` on {device} makes one that does; "
                f"`latency.accept: [{', '.join(refused)}]` takes this one all the same"
            )

    def row(self, key: Key) -> Row:
        """The row of `key`, which has a time. Raises TableError if it is missing, OutOfMemory if it did not fit."""
        row = self.rows.get(key)
        if row is None:
            held = {name: sorted({getattr(each, name) for each in self.rows}) for name in ("width", "batch")}
            words = " and ".join(f"{name} {', '.join(map(str, values))}" for name, values in held.items())
            raise TableError(f"{self.name}, of {words}, has no row for {key}; {self._build} measures what is missing")
        if row.latency_ms is None:
            raise OutOfMemory(f"{key} did not fit into the memory of {self.provenance.device_name}, says {self.name}")
        return row

    def grid(self, part: Part) -> Sequence[int]:
        """The measured contexts of a part's block, rising. Raises TableError if its passes do not lie within them."""
        if not self._grids:
            for key in sorted(self.rows):
                self._grids.setdefault(replace(key, context=0), []).append(key.context)
        grid = self._grids.get(replace(part.key, context=0))
        if not grid:
            self.row(part.key)  # raises
            raise AssertionError
        if not grid[0] <= part.key.context <= part.last <= grid[-1]:
            beyond = part.key.context if part.key.context < grid[0] else part.last
            raise TableError(
                f"{self.name} knows {replace(part.key, context=grid[0])} and up to {grid[-1]}, but not {beyond}, and "
                f"nothing is guessed beyond what was measured: {self._build} with a workload of that context in CONFIG "
                "measures it"
            )
        return grid

    # --- estimates -----------------------------------------------------------------------------------------------

    def estimate(self, architecture: Architecture, workload: Workload, dtype: str | None = None) -> Estimate:
        """The time of `workload`: see `nfsearch.latency_lut.estimator`.

        `dtype` may be left out where the table has only one. Raises TableError for a row that the table lacks, and
        OutOfMemory for one that did not fit. Takes microseconds: what was looked up once is kept.
        """
        chosen = self.choice(architecture, workload, dtype)
        found = self._priced(architecture, chosen, dtype).estimate(architecture.layers)
        if workload.phase != "throughput":
            return found
        return Estimate(found.seconds / chosen.batch, found.error / chosen.batch)

    def memory(self, architecture: Architecture, workload: Workload, dtype: str | None = None) -> float:
        """Bytes that `workload` takes at its peak. Raises as `estimate` does."""
        chosen = self.choice(architecture, workload, dtype)
        return self._priced(architecture, chosen, dtype).memory(architecture.layers)

    def choice(self, architecture: Architecture, workload: Workload, dtype: str | None = None) -> Workload:
        """The workload that is measured: itself, or for throughput the decode step at the largest batch that fits.

        Raises OutOfMemory if none does, and TableError if the memory is not known.
        """
        if workload.phase != "throughput":
            return workload
        whole = self.provenance.memory_gb
        room = workload.memory_gb or (whole and _USABLE * whole)
        if not room:
            raise TableError(f"{self.name} does not know its device's memory: give the throughput workload a memory_gb")
        for choice in workload.choices:
            try:
                if self._priced(architecture, choice, dtype).memory(architecture.layers) <= room * 1e9:
                    return choice
            except OutOfMemory:
                continue
        raise OutOfMemory(f"{architecture} does not fit into {room:g} GB at any of the batches {workload.batches}")

    def breakdown(self, architecture: Architecture, workload: Workload, dtype: str | None = None) -> dict[str, float]:
        """Seconds by part: what `estimate` adds up, the constant overhead included, largest first."""
        a, chosen, dtype = architecture, self.choice(architecture, workload, dtype), dtype or self.only_dtype()
        parts: dict[str, float] = {}
        for span in chosen.spans:
            passes = end_parts(a.width, a.vocab, span, dtype, a.meta_tokens, a.head_norm)
            for layer in a.layers:
                passes += layer_parts(layer, a.width, span, dtype, a.meta_tokens)
            for part in passes:
                parts[part.key.block] = parts.get(part.key.block, 0.0) + priced(self, part)[0]
            parts["overhead"] = (
                parts.get("overhead", 0.0) + span.count * self.overhead(span.phase, span.batch, dtype)[0]
            )
        share = chosen.batch if workload.phase == "throughput" else 1
        return {name: seconds / share for name, seconds in sorted(parts.items(), key=lambda part: -part[1])}

    def overhead(self, phase: str, batch: int, dtype: str) -> tuple[float, float]:
        """The constant cost of a forward pass in seconds, and its standard error: the median over the chains of this
        phase and batch of what did not grow with their length."""
        chains = [
            row
            for row in self.rows.values()
            if (row.key.phase, row.key.batch, row.key.dtype) == (phase, batch, dtype)
            and row.status == SLOPE
            and row.key.end is None
        ]
        if not chains:
            return 0.0, 0.0
        values = [row.overhead_ms / 1e3 for row in chains]
        return max(0.0, statistics.median(values)), standard_error(quartile_range(values), len(values))

    def only_dtype(self) -> str:
        """Raises TableError where there are several."""
        found = sorted({key.dtype for key in self.rows})
        if len(found) != 1:
            raise TableError(f"{self.name} has rows of {', '.join(found) or 'no dtype'}: say which dtype is meant")
        return found[0]

    def _priced(self, architecture: Architecture, workload: Workload, dtype: str | None) -> Prices:
        a = architecture
        place = (a.width, a.vocab, a.meta_tokens, a.head_norm, workload, dtype)
        prices = self._prices.get(place)
        if prices is None:
            prices = self._prices[place] = Prices(self, a, workload, dtype or self.only_dtype())
        return prices

    @property
    def widths(self) -> list[int]:
        """Those that it has rows of, narrow to wide."""
        return sorted({key.width for key in self.rows})

    def render(self, widths: Sequence[int] | None = None) -> rich.table.Table:
        """For the terminal: a line for each block and workload, a column for each of the widths (all, if none are
        given), milliseconds and spread."""
        from nfsearch.latency_lut.render import render

        return render(self, widths)
