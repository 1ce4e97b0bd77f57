"""Measures the rows of a latency table on the device at hand.

A row is a difference: what a model takes longer by the blocks in question, gaps between kernels included (see
`nfsearch.latency_lut.frames`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from nfsearch.latency_lut.code import digest_of
from nfsearch.latency_lut.device import cache_bytes, free_memory, monitor, provenance, resolve
from nfsearch.latency_lut.disturbance import Watch
from nfsearch.latency_lut.errors import Busy, TableError
from nfsearch.latency_lut.files import Journal, read_tables, write_tables
from nfsearch.latency_lut.frames import Term, terms_of, touched_between, touched_by
from nfsearch.latency_lut.keys import Key
from nfsearch.latency_lut.nvml import Reading
from nfsearch.latency_lut.places import ends_stay, keys_for, placed
from nfsearch.latency_lut.provenance import BUSY, Provenance
from nfsearch.latency_lut.rows import MEASURED, OUT_OF_MEMORY, QUIET, WHOLE, Row
from nfsearch.latency_lut.table import LatencyTable
from nfsearch.latency_lut.timing import Bounds, Run, bounds, warm_up
from nfsearch.latency_lut.whole import build_model, clean_up, is_out_of_memory, time_models
from nfsearch.latency_lut.workload import Span, Workload
from nfsearch.space.search_space import SearchSpace

_SURE = 4.0  # standard errors from a look at a row to its upper bound
_MORE_LOOKS = 3  # at a row of which some were disturbed
_DISTURBED_ROWS = 0.5  # a table with more of them is not made
_WHILE_ASKED = 0.02  # seconds of work that go on while the driver is asked for the clock and the power

Progress = Callable[[int, int, "Row | None"], None]


def rows_of(space: SearchSpace, workloads: Mapping[str, Workload], dtype: str, kind: str) -> list[Key]:
    """All that a table of a space needs on this machine's device of a kind, in the order in which it is measured."""
    keys, within = keys_for(space, workloads, dtype), bounds(kind)
    return placed(keys, space, workloads, cache_bytes(kind), others=within.others, under=within.under)


def build(
    keys: Iterable[Key],
    path: str | Path,
    *,
    device: str = "auto",
    accept: Iterable[str] = (),
    progress: Progress | None = None,
    spent: dict[str, float] | None = None,
) -> LatencyTable:
    """Measures `keys` into the table at `path`.

    A table that is there already is completed: rows that it has are not measured again unless they timed other code
    than what is here, and tables of other devices in the same file stay. Every look at a row is on disk before the next
    one begins, in the journal beside the table, from which a build that was stopped or killed goes on. `device` is
    auto, cpu, cuda or the short name of this machine's device. `progress(done, total, row)` is called at the start,
    with row None, and after each look at a row; it counts looks. `spent` is given the seconds that each kind of work
    took. A row that does not fit into memory is recorded as such.

    A look while something else used the machine is made again, up to three times. Raises `Busy` if half of the rows
    never had a quiet one, unless `accept` has "busy"; TableError if the rows there were made by other versions, and
    ValueError if `device` is not here.
    """
    wanted, path = list(dict.fromkeys(keys)), Path(path)
    kind = resolve(device)
    profiler, journal = Profiler(kind, spent), Journal(path)
    came, looks = journal.read()
    tables, table = _known(path, came, provenance(kind))
    stale = table.stale(wanted)
    for key in stale:
        del table.rows[key]
    missing = table.missing(wanted)
    seen = _believed(looks, missing, disturbed=BUSY in accept)
    anew = bool(stale) or not table.rows
    path.parent.mkdir(parents=True, exist_ok=True)
    total, once = profiler.within.looks * len(wanted), profiler.within.looks
    done = total - sum(max(0, once - len(rows)) for rows in seen.values())
    if progress:
        progress(done, total, None)
    with journal:
        for key in _turns(seen, once):
            if not journal.is_open:
                with profiler.timed("warm-up"):
                    profiler.start()
                if anew:
                    table.provenance = came or provenance(kind)  # with the clock as it is under load
                journal.start(table.provenance)
            row = profiler.measure(key)
            journal.add(row)
            seen[key].append(row)
            done = min(done + 1, total)
            if progress:
                progress(done, total, row)
    for rows in seen.values():
        table.add(_best(rows))
    _refuse_disturbed(table, missing, accept)
    write_tables(path, {**tables, table.provenance.device: table}.values())
    journal.remove()
    table.path = path
    return table


def _believed(looks: Iterable[Row], keys: Iterable[Key], *, disturbed: bool) -> dict[Key, list[Row]]:
    """The looks at each key that count: at the code that is here, and quiet, unless those that were not are taken."""
    seen: dict[Key, list[Row]] = {key: [] for key in keys}
    for row in looks:
        if row.key in seen and row.code == digest_of(row.key) and (disturbed or not row.disturbed):
            seen[row.key].append(row)
    return seen


def _turns(seen: dict[Key, list[Row]], looks: int) -> Iterator[Key]:
    """Which row to look at next: all of them once, then all again, since whatever else is going on may slow whole rows
    for seconds; then those that had fewer quiet looks than that."""
    for look in range(looks):
        yield from (key for key in seen if len(seen[key]) <= look)
    for more in range(_MORE_LOOKS):
        yield from (
            key
            for key, rows in seen.items()
            if len(rows) <= looks + more and sum(not row.disturbed for row in rows) < looks
        )


def _best(rows: list[Row]) -> Row:
    """Of those that were not disturbed the one of the least upper bound, as what slows a machine down for seconds makes
    a row large, and what does so for a moment makes it unsure; or, if all were, the least disturbed."""

    def bound(row: Row) -> tuple[float, float]:
        latency = math.inf if row.latency_ms is None else row.latency_ms
        return max(row.disturbance, QUIET), latency + _SURE * row.error_ms

    return min(rows, key=bound)


def _refuse_disturbed(table: LatencyTable, keys: list[Key], accept: Iterable[str]) -> None:
    bad = [table.rows[key] for key in keys if table.rows[key].disturbed]
    if len(bad) > _DISTURBED_ROWS * len(keys) and BUSY not in accept:
        most = max(row.disturbance for row in bad)
        raise Busy(
            f"the machine is busy with something else: {len(bad)} of {len(keys)} rows could not be measured in quiet "
            f"(known work beside them took up to {most:.0%} longer, or others used so much of the processors). The "
            "same command, once it is quiet, measures these again; with --set 'latency.accept=[busy]' it takes them as "
            "they are"
        )


def _known(path: Path, came: Provenance | None, here: Provenance) -> tuple[dict[str, LatencyTable], LatencyTable]:
    """The tables at a path, and the one of this device, new where there is none; `came` is the journal's provenance.
    Raises TableError if its rows or the journal's were made by other versions."""
    tables = read_tables(path) if path.exists() else {}
    table = tables.get(here.device) or LatencyTable(came or here)
    for known in (came, table.provenance):
        if known and (differences := known.differences(here)):
            raise TableError(
                f"{path} has rows that new ones cannot join ({'; '.join(differences.values())}); name another file, "
                f"or delete this one (and {Journal(path).path.name}, if it is there) to measure all anew"
            )
    return tables, table


class Profiler:
    """Measures one row after the other."""

    def __init__(self, kind: str, spent: dict[str, float] | None = None, within: Bounds | None = None) -> None:
        """`kind` of device, "cpu" or "cuda"; `spent` collects seconds by kind of work."""
        self.kind, self.within = kind, within or bounds(kind)
        self.spent = {} if spent is None else spent
        self.cache_bytes = cache_bytes(kind)
        self._watch: Watch | None = None

    def start(self) -> None:
        """Warms the device up, and finds out how fast it is when nothing disturbs it."""
        warm_up(self.kind)
        self._watch = Watch(self.kind)

    def measure(self, key: Key) -> Row:
        """The row of `key`."""
        if self._watch is None:
            self.start()
        assert self._watch is not None
        terms = terms_of(key, self.cache_bytes)
        row = Row(
            key=key,
            status=OUT_OF_MEMORY,
            latency_ms=None,
            spread_ms=0.0,
            runs=0,
            layers=len(terms[-1].model.layers),
            working_set_mb=touched_by(terms[-1].model, key, ends_stay(self.kind)) / 1e6,
            between_mb=touched_between(key) / 1e6,
            disturbance=0.0,
            cuda_graph=self.kind == "cuda",
            code=digest_of(key),
        )
        if sum(touched_by(term.model, key) for term in terms) < free_memory(self.kind):
            try:
                row = self._difference(row, terms, self._watch)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        with self.timed("clean up"):
            clean_up(self.kind)
        return row

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[work] = self.spent.get(work, 0.0) + time.perf_counter() - began

    def _difference(self, row: Row, terms: list[Term], watch: Watch) -> Row:
        """The row with what its models take."""
        key, weights = row.key, [term.weight for term in terms]
        others = [0.0] * (len(terms) - 1)
        with self.timed("models"):
            models = [build_model(term.model, key.dtype, self.kind) for term in terms]
        span = Span("prefill" if key.phase == "prefill" else "decode", key.batch, key.context)
        with self.timed("timing"), watch.look() as disturbance:
            timed = time_models(models, span, weights, self.kind, self.within)
            reading = self._reading(timed.last, timed.samples.combine(*others, 1.0)[0])
        (seconds, spread), status = timed.samples.combine(*weights), MEASURED
        if seconds <= 0:
            (seconds, spread), status = timed.samples.combine(*others, 1 / max(1, row.layers)), WHOLE
        return replace(
            row,
            status=status,
            latency_ms=1e3 * seconds,
            spread_ms=1e3 * spread,
            runs=timed.samples.count,
            disturbance=disturbance.share,
            workspace_mb=None if timed.peak is None else max(0.0, timed.peak - touched_by(terms[-1].model, key)) / 1e6,
            clock_mhz=reading.clock_mhz,
            power_w=reading.power_w,
            throttle=reading.throttle,
        )

    def _reading(self, run: Run, seconds: float) -> Reading:
        """What the driver says while `run`, which takes so many seconds, goes on."""
        if self.kind == "cpu":
            return Reading()
        for _ in range(math.ceil(_WHILE_ASKED / seconds)):
            run()
        reading = monitor().read()
        torch.cuda.synchronize()
        return reading
