"""How time is taken: one CUDA graph on a GPU, wall clock on a CPU, samples in turn until they agree."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nfsearch.latency_lut.table import quartile_range, standard_error

Run = Callable[[], object]
Round = tuple[float, ...]  # seconds of one pass of each run


@dataclass(frozen=True)
class Bounds:
    """How long and how exactly is measured on a kind of device."""

    warm_up: float  # seconds of work before the first sample of a row
    sample: float  # seconds that a sample lasts at least, the shortest run repeated
    seconds: float  # spent on the samples of a row at most, once `least` are taken
    least: int  # rounds
    most: int
    target: float  # relative standard error at which a row is good
    working_set: float  # bytes that a short chain should touch, so that the caches hold what they hold in a model
    longest: int  # blocks in a short chain at most; a real model is no deeper


CPU = Bounds(warm_up=0.05, sample=1e-3, seconds=0.6, least=5, most=60, target=0.005, working_set=8e6, longest=16)
CUDA = Bounds(warm_up=0.05, sample=1e-3, seconds=0.4, least=10, most=200, target=0.001, working_set=240e6, longest=32)


def bounds(kind: str) -> Bounds:
    return CUDA if kind == "cuda" else CPU


def prepared(function: Run, kind: str) -> Run:
    """`function` as it is timed: captured into a CUDA graph on a GPU, itself on a CPU.

    It must be free of synchronisation and allocate nothing that outlives it; what it reads and writes must stay alive
    and in place for as long as the result is called.
    """
    if kind == "cpu":
        return function
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # compiles, tunes and allocates, none of which a capture may do
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def warm_up(kind: str) -> None:
    """At least half a second of work, until the time of the same work has stopped falling (clocks rise under load)."""
    size = 4096 if kind == "cuda" else 512
    matrix = torch.randn(size, size, device=kind)

    def work() -> torch.Tensor:
        return matrix @ matrix

    started, recent = time.perf_counter(), [math.inf]
    while time.perf_counter() - started < 3:
        recent = [*recent[-3:], sample(work, 20, kind)]
        if time.perf_counter() - started > 0.5 and max(recent) < 1.02 * min(recent):
            return


def sample(run: Run, times: int, kind: str) -> float:
    """Seconds of one pass, over `times` passes back to back.

    One pass more goes before: it leaves the caches as they are between passes, and on a GPU the launch of the timed
    ones hides behind it, as a decode loop's launches do.
    """
    run()
    if kind == "cpu":
        started = time.perf_counter()
        for _ in range(times):
            run()
        return (time.perf_counter() - started) / times
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(times):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / times


def rounds(runs: Sequence[Run], value: Callable[[Round], float], kind: str, within: Bounds) -> list[Round]:
    """Samples of each run, taken in turn so that a drifting clock meets all of them alike.

    Ends when the median of `value` over the rounds is known to `within.target`, or the time or the number is used up.
    """
    started, once = time.perf_counter(), math.inf
    while once == math.inf or time.perf_counter() - started < within.warm_up:
        once = min(once, sample(runs[0], 1, kind))
    times = max(1, math.ceil(within.sample / once))
    taken: list[Round] = []
    started = time.perf_counter()
    while len(taken) < within.most:
        taken.append(tuple(sample(run, times, kind) for run in runs))
        if len(taken) < within.least:
            continue
        values = [value(one) for one in taken]
        middle = statistics.median(values)
        if standard_error(quartile_range(values), len(values)) <= within.target * middle:
            break
        if time.perf_counter() - started > within.seconds:
            break
    return taken
