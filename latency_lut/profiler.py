"""Measures the rows of a latency table on the device at hand.

A row is a slope. Two chains of blocks with distinct weights are timed, one twice as long as the other; what the second
half adds is the time of its blocks inside a model, gaps between kernels included, and what is left over is the
constant cost of a forward pass.
"""

from __future__ import annotations

import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from nfsearch.latency_lut.chains import Chain, Weights, touched
from nfsearch.latency_lut.code import digest_of
from nfsearch.latency_lut.device import free_memory, monitor, provenance, resolve
from nfsearch.latency_lut.errors import TableError
from nfsearch.latency_lut.files import Journal, read_tables, write_tables
from nfsearch.latency_lut.keys import EMBEDDING, Key
from nfsearch.latency_lut.nvml import Reading
from nfsearch.latency_lut.provenance import Provenance
from nfsearch.latency_lut.rows import OUT_OF_MEMORY, SLOPE, WHOLE, Row
from nfsearch.latency_lut.table import LatencyTable
from nfsearch.latency_lut.timing import Bounds, Run, bounds, prepared, take, warm_up

# Something else on the machine, or an unlucky capture of a graph, slows whole rows for seconds. So all are measured
# once and then all again, and the faster look at each is kept.
LOOKS = 2
_BUSY = 0.02  # seconds of work that go on while the driver is asked for the clock and the power

Progress = Callable[[int, int, "Row | None"], None]


def build(
    keys: Iterable[Key],
    path: str | Path,
    *,
    device: str = "auto",
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

    Raises TableError if the rows there were made by other versions, and ValueError if `device` is not here.
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
    looks = [row for row in looks if row.code == digest_of(row.key)]
    seen = Counter(row.key for row in looks)
    for row in looks:
        _keep(table, row)
    todo = [key for look in range(LOOKS) for key in missing if seen[key] <= look]
    total = LOOKS * len(wanted)
    if todo:
        with profiler.timed("warm-up"):
            warm_up(kind)
    if stale or not table.rows:
        table.provenance = came or provenance(kind)  # with the clock as it is under load
    path.parent.mkdir(parents=True, exist_ok=True)
    with journal:
        if todo:
            journal.start(table.provenance)
        if progress:
            progress(total - len(todo), total, None)
        for done, key in enumerate(todo, start=total - len(todo) + 1):
            row = profiler.measure(key)
            journal.add(row)
            _keep(table, row)
            if progress:
                progress(done, total, row)
    write_tables(path, {**tables, table.provenance.device: table}.values())
    journal.remove()
    table.path = path
    return table


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


def _keep(table: LatencyTable, row: Row) -> None:
    known = table.rows.get(row.key)
    if known is None or known.latency_ms is None or (row.latency_ms is not None and row.latency_ms < known.latency_ms):
        table.add(row)


class Profiler:
    """Measures one row after the other. Weights are kept from row to row for as long as they serve, so rows of the
    same block and width come best one after the other."""

    def __init__(self, kind: str, spent: dict[str, float] | None = None, within: Bounds | None = None) -> None:
        """`kind` of device, "cpu" or "cuda"; `spent` collects seconds by kind of work."""
        self.kind, self.within = kind, within or bounds(kind)
        self.spent = {} if spent is None else spent
        self._weights: Weights | None = None

    def measure(self, key: Key) -> Row:
        """The row of `key`."""
        if self._weights is None or not self._weights.serve(key):
            self._weights = None  # its memory is free before the new ones are made
            self._weights = Weights(key, self.kind)
        size = touched(key)
        short = min(self.within.chain(size), int(free_memory(self.kind) // (2 * size)))
        row = None
        if short:
            try:
                row = self._slope(key, short, self._weights)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._weights = None
                gc.collect()
        with self.timed("clean up"):
            if self.kind == "cuda":
                torch.cuda.empty_cache()
        return row or Row(
            key=key,
            status=OUT_OF_MEMORY,
            latency_ms=None,
            spread_ms=0.0,
            overhead_ms=0.0,
            overhead_spread_ms=0.0,
            runs=0,
            short_chain=0,
            long_chain=0,
            working_set_mb=2 * size / 1e6,
            cache=_cache(key),
            cuda_graph=self.kind == "cuda",
            code=digest_of(key),
        )

    @contextmanager
    def timed(self, work: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[work] = self.spent.get(work, 0.0) + time.perf_counter() - began

    @torch.inference_mode()
    def _slope(self, key: Key, short: int, weights: Weights) -> Row:
        long = 2 * short
        with self.timed("weights and states"):
            chain = Chain.of(key, long, weights)
        with self.timed("first run, compiling"):
            workspace = self._workspace(chain)
        with self.timed("capture"):
            runs = [prepared(lambda n=n: chain.run(n), self.kind) for n in (short, long)]  # type: ignore[misc]
        with self.timed("timing"):
            samples = take(runs, (-1 / short, 1 / short), self.kind, self.within)
            reading = self._reading(runs[1], samples.combine(0, 1)[0])
        slope, spread = samples.combine(-1 / short, 1 / short)
        overhead, overhead_spread = samples.combine(2, -1)
        whole, whole_spread = samples.combine(0, 1 / long)
        good = slope > 0
        return Row(
            key=key,
            status=SLOPE if good else WHOLE,
            latency_ms=1e3 * (slope if good else whole),
            spread_ms=1e3 * (spread if good else whole_spread),
            overhead_ms=1e3 * overhead if good else 0.0,
            overhead_spread_ms=1e3 * overhead_spread,
            runs=samples.count,
            short_chain=short,
            long_chain=long,
            working_set_mb=long * touched(key) / 1e6,
            cache=_cache(key),
            cuda_graph=self.kind == "cuda",
            code=digest_of(key),
            workspace_mb=workspace,
            clock_mhz=reading.clock_mhz,
            power_w=reading.power_w,
            throttle=reading.throttle,
        )

    def _workspace(self, chain: Chain) -> float | None:
        """Runs one link; the most megabytes that were allocated in it besides what was there before. On a GPU, where
        the first run compiles and tunes, it is the second that counts."""
        if self.kind == "cpu":
            return None
        chain.run(1)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        chain.run(1)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6

    def _reading(self, run: Run, seconds: float) -> Reading:
        """What the driver says while `run`, which takes so many seconds, goes on."""
        if self.kind == "cpu":
            return Reading()
        for _ in range(math.ceil(_BUSY / seconds)):
            run()
        reading = monitor().read()
        torch.cuda.synchronize()
        return reading


def _cache(key: Key) -> str:
    return "distinct rows" if key.end == EMBEDDING else "distinct weights"


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Also where the end of a failed capture raised another error over it."""
    if error is None:
        return False
    return any(text in str(error) for text in ("out of memory", "allocate memory")) or _is_out_of_memory(
        error.__context__
    )
