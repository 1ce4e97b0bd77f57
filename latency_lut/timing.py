"""How time is taken: one CUDA graph on a GPU, wall clock on a CPU, samples in turn until they agree."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch

from nfsearch.latency_lut.rows import quartile_range, standard_error

Run = Callable[[], object]


@dataclass(frozen=True)
class Bounds:
    """How long and how exactly is measured on a kind of device."""

    warm_up: float  # seconds of work before the first sample of a row
    sample: float  # seconds that a sample lasts at least, the shortest run repeated
    keep: float  # the share of the samples that counts, the fastest
    least: int  # samples of each run, unless they take four times `seconds`
    most: int
    seconds: float  # for a row, once `least` are taken
    target: float  # relative standard error at which a row is good
    looks: int  # at each row; the one of the least upper bound is kept
    others: tuple[int, ...]  # layers of other work among which a layer's decoding is timed
    under: tuple[int, ...]  # layers of other work under a model's ends


# A CPU is shared with whatever else runs: its samples have a floor and a long tail of disturbances, so that only the
# fastest tenth says what the work itself takes. A GPU is ours alone.
CPU = Bounds(
    warm_up=0.03,
    sample=1e-4,
    keep=0.1,
    least=30,
    most=400,
    seconds=0.2,
    target=0.005,
    looks=3,
    others=(1,),
    under=(1, 2, 4, 8, 16),
)
CUDA = Bounds(
    warm_up=0.02,
    sample=2e-3,
    keep=1.0,
    least=8,
    most=200,
    seconds=0.1,
    target=0.002,
    looks=1,
    others=(0, 1, 7),
    under=(4, 12),
)
_FEWEST = 3  # samples, however long one takes
_IN_A_ROW = {"cpu": 5, "cuda": 1}  # samples of a run before it is the next one's turn


def bounds(kind: str) -> Bounds:
    return CUDA if kind == "cuda" else CPU


def prepared(function: Run, kind: str) -> Run:
    """`function` as it is timed: captured into a CUDA graph on a GPU, itself on a CPU.

    It must be free of synchronisation and allocate nothing that outlives it; what it reads and writes must stay alive
    and in place for as long as the result is called.
    """
    if kind == "cpu":
        return function
    stream = _side_stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()  # compiles, tunes and allocates, none of which a capture may do
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


@cache
def _side_stream() -> torch.cuda.Stream:
    """One for all: libraries keep a workspace for every stream that they have met."""
    return torch.cuda.Stream()


def warm_up(kind: str) -> None:
    """Half a second of work; on a GPU until the same work takes the same time, as clocks rise under load."""
    size = 4096 if kind == "cuda" else 512
    matrix = torch.randn(size, size, device=kind)

    def work() -> torch.Tensor:
        return matrix @ matrix

    started, recent = time.perf_counter(), [math.inf]
    while time.perf_counter() - started < (3 if kind == "cuda" else 0.5):
        recent = [*recent[-3:], sample(work, 20, kind)]
        if time.perf_counter() - started > 0.5 and max(recent) < 1.02 * min(recent):
            return


def _in_turn(run: Run, times: int, kind: str) -> list[float]:
    """Samples after those of another run, which left its own bytes in the caches: the first passes bring this one's
    back, which on a CPU takes several."""
    return [sample(run, times, kind) for _ in range(_IN_A_ROW[kind])]


def sample(run: Run, times: int, kind: str) -> float:
    """Seconds of one pass, over `times` passes back to back."""
    if kind == "cpu":
        started = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - started) / times
    if times > 1:
        run()  # the launches of short passes hide behind this one, as a decode loop's do
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times


@dataclass(frozen=True)
class Samples:
    """Seconds of one pass of each of several runs, those samples that are kept."""

    runs: list[list[float]]

    @property
    def count(self) -> int:
        return len(self.runs[0])

    def combine(self, *weights: float) -> tuple[float, float]:
        """The weighted sum of the runs' medians, and the spread it has from their interquartile ranges."""
        value = sum(weight * statistics.median(times) for weight, times in zip(weights, self.runs, strict=True))
        spread = math.hypot(*(w * quartile_range(times) for w, times in zip(weights, self.runs, strict=True)))
        return value, spread


def take(runs: Sequence[Run], weights: Sequence[float], kind: str, within: Bounds) -> Samples:
    """Samples of each run, taken in turn so that a drifting clock meets all of them alike.

    Ends when the runs' sum with these weights is known to `within.target`, or the time or the number is used up.
    """
    started, once = time.perf_counter(), math.inf
    while once == math.inf or time.perf_counter() - started < within.warm_up:
        once = min(once, sample(runs[0], 1, kind))
    times = max(1, math.ceil(within.sample / once))
    taken: list[list[float]] = [[] for _ in runs]
    started = time.perf_counter()
    while True:
        for run, column in zip(runs, taken, strict=True):
            column += _in_turn(run, times, kind)
        elapsed, count = time.perf_counter() - started, len(taken[0])
        if count < (within.least if elapsed < 4 * within.seconds else _FEWEST):
            continue
        kept = math.ceil(within.keep * count)
        samples = Samples([sorted(column)[:kept] for column in taken])
        value, spread = samples.combine(*weights)
        good = standard_error(spread, kept) <= within.target * value
        if good or count >= within.most or elapsed > within.seconds:
            return samples
