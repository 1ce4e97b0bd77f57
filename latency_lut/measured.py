"""The measured rows of one device: what they are, what is lacking, and what they serve for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nfsearch.latency_lut.bundled import folder
from nfsearch.latency_lut.code import digest_of
from nfsearch.latency_lut.errors import OutOfMemory, TableError
from nfsearch.latency_lut.interpolation import around
from nfsearch.latency_lut.keys import Key, Part
from nfsearch.latency_lut.provenance import KERNELS, Provenance
from nfsearch.latency_lut.rows import Row


@dataclass
class Measured:
    """Rows by key, all of one device. `path` is where they were read from or saved to, for messages."""

    provenance: Provenance
    rows: dict[Key, Row] = field(default_factory=dict)
    path: Path | None = field(default=None, compare=False)
    _grids: dict[Key, list[int]] = field(default_factory=dict, repr=False, compare=False)
    _sums: dict[Key, list[int]] = field(default_factory=dict, repr=False, compare=False)
    _places: dict[Key, list[tuple[int, str]]] = field(default_factory=dict, repr=False, compare=False)

    def add(self, row: Row) -> None:
        self.rows[row.key] = row
        self._grids.clear()
        self._sums.clear()
        self._places.clear()

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
        table = "TABLE.parquet" if self._shipped else self.path or "TABLE"
        return f"`nfsearch lut build CONFIG -o {table}` on {self.provenance.device}"

    def missing(self, keys: Iterable[Key]) -> list[Key]:
        """Those of `keys` that were not measured yet."""
        return [key for key in keys if key not in self.rows]

    def stale(self, keys: Iterable[Key] | None = None) -> list[Key]:
        """Rows (of those that `keys` name, or all) that timed other code than what is here."""
        rows = self.rows.values() if keys is None else [self.rows[key] for key in keys if key in self.rows]
        return [row.key for row in rows if row.code != digest_of(row.key)]

    def staleness(self, keys: Collection[Key] | None = None) -> str:
        """How many rows (of those that `keys` name, or all) are stale and which, in words; or nothing."""
        stale = self.stale(keys)
        counts = Counter(f"{key.block.partition('[')[0]} {key.phase}" for key in stale)
        which = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
        whole = len(self.rows if keys is None else keys)
        return f"{len(stale)} of {whole} rows were timed with other code: {which}" if stale else ""

    def disturbance(self) -> str:
        """How many rows were measured while something else used the machine, in words; or nothing."""
        count = sum(row.disturbed for row in self.rows.values())
        return f"{count} of {len(self.rows)} rows were measured while something else used the machine" if count else ""

    def require(self, keys: Iterable[Key], accept: Collection[str] = ()) -> None:
        """Raises TableError, naming the command that measures them, if some of `keys`, wherever they may have been
        measured, can neither be looked up nor lie between contexts that were; or if they hang on rows that timed other
        code than what is here, unless `accept` has "kernels"."""
        used: dict[Key, None] = {}
        problems = []
        for key in keys:
            found = False
            for place in self.places(key) or [key]:
                try:
                    grid = [key.context] if place in self.rows else self.grid(Part(place, key.context, 1))
                except TableError as error:
                    problem = str(error)
                    continue
                used |= dict.fromkeys(place.at(point) for point in around(grid, key.context))
                found = True
            if not found:
                problems.append(problem)
        if problems:
            raise TableError(problems[0] + (f" (and {len(problems) - 1} more are missing)" if problems[1:] else ""))
        if KERNELS not in accept and (words := self.staleness(used)):
            raise TableError(
                f"{self.name} does not serve here, {words}. {self._build} measures these anew; "
                f"`latency.accept: [{KERNELS}]` takes them all the same"
            )

    def require_origin(self, device: str, here: Provenance, accept: Collection[str] = ()) -> None:
        """Raises TableError unless the table is of `device` (a short name) and, where the device itself is here, of its
        driver and versions. `accept` names the differences that are taken as they are: device, driver, torch, ...
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

    def places(self, key: Key) -> list[Key]:
        """`key` in each place in which its block was measured under such conditions, at some context."""
        self._index()
        return [key.placed(others, cache) for others, cache in self._places.get(key.placeless.at(0), ())]

    def grid(self, part: Part) -> Sequence[int]:
        """The measured contexts of a part's block in its place, rising. Raises TableError if its passes do not lie
        within them."""
        self._index()
        grid = self._grids.get(part.key.at(0))
        if not grid:
            self.row(part.key)  # raises
            raise AssertionError
        if not grid[0] <= part.key.context <= part.last <= grid[-1]:
            beyond = part.key.context if part.key.context < grid[0] else part.last
            raise TableError(
                f"{self.name} knows {part.key.at(grid[0])} and up to {grid[-1]}, but not {beyond}, and "
                f"nothing is guessed beyond what was measured: {self._build} with a workload of that context in CONFIG "
                "measures it"
            )
        return grid

    def grid_of_sum(self, part: Part) -> Sequence[int]:
        """As `grid`, without rows that timed other code and lie between rows of what is here: `require` knows nothing
        of them, as nobody asks for a sum's contexts one by one."""
        grid, start = self.grid(part), part.key.at(0)
        if start not in self._sums:
            stale = set(self.stale(map(start.at, grid)))
            here = [context for context in grid if start.at(context) not in stale] or grid
            self._sums[start] = [each for each in grid if each in here or not here[0] < each < here[-1]]
        return self._sums[start]

    def _index(self) -> None:
        if self._grids:
            return
        for key in sorted(self.rows):
            self._grids.setdefault(key.at(0), []).append(key.context)
        for key in self._grids:
            self._places.setdefault(key.placeless, []).append((key.others, key.cache))

    def only_dtype(self) -> str:
        """Raises TableError where there are several."""
        found = sorted({key.dtype for key in self.rows})
        if len(found) != 1:
            raise TableError(f"{self.name} has rows of {', '.join(found) or 'no dtype'}: say which dtype is meant")
        return found[0]

    @property
    def widths(self) -> list[int]:
        """Those that it has rows of, narrow to wide."""
        return sorted({key.width for key in self.rows})
