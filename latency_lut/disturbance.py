"""Does something else use the machine while it is being measured?

Two signs: a piece of known work, done before and after each measurement, takes longer than at its best; and, on a CPU,
other processes, or other guests of a virtual machine's host, take part of the processors while we use the rest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from nfsearch.latency_lut.timing import sample

_STAT = Path("/proc/stat")
# The known work: products of square matrices of this size, so many in a sample. Of smaller ones a CPU's threads would
# wait for each other so often that on a busy machine it took seconds.
_SIZES, _TIMES = {"cpu": 416, "cuda": 2048}, {"cpu": 4, "cuda": 20}
_SLOWER = {"cpu": 0.5, "cuda": 1.0}  # what a share by which it is slower counts
_FULL = 0.85  # of the processors: below it, whoever else is there has room of its own
_TICKS = os.sysconf("SC_CLK_TCK")  # of the processors' counters, in a second


@dataclass
class Disturbance:
    """By which share known work was slower than at its best (half of it on a CPU, whose clock goes up and down by a
    quarter by itself), or others used the processors, whichever is larger."""

    share: float = 0.0


class Watch:
    """Over one device, from when it is warm."""

    def __init__(self, kind: str) -> None:
        self.kind, self._best = kind, float("inf")
        self._matrix = torch.randn(_SIZES[kind], _SIZES[kind], device=kind)
        for _ in range(5):
            self._known_work()

    @contextmanager
    def look(self) -> Iterator[Disturbance]:
        """Over what is done inside; what it gives is filled in at the end."""
        seen = Disturbance()
        before, processors = self._known_work(), _Processors.now()
        yield seen
        others = processors.used_by_others() if self.kind == "cpu" else 0.0
        after = self._known_work()
        # Of a CPU's samples the fastest count, for which one quiet end is enough; of a GPU's all.
        slow = min(before, after) if self.kind == "cpu" else max(before, after)
        seen.share = max(_SLOWER[self.kind] * (slow / self._best - 1), others)

    def _known_work(self) -> float:
        """Seconds; the fastest of five tries, as a single interrupt is no disturbance."""
        seconds = min(sample(lambda: self._matrix @ self._matrix, _TIMES[self.kind], self.kind) for _ in range(5))
        self._best = min(self._best, seconds)
        return seconds


@dataclass(frozen=True)
class _Processors:
    """Seconds of all processors together since the start, and of this process."""

    clock: float
    busy: float
    own: float

    @classmethod
    def now(cls) -> _Processors:
        """As Linux counts them; time that the host of a virtual machine gave to other guests counts as used."""
        try:
            fields = _STAT.read_text().splitlines()[0].split()[1:9]
            user, nice, system, _, _, irq, softirq, steal = map(int, fields)
            busy = (user + nice + system + irq + softirq + steal) / _TICKS
        except (OSError, ValueError, IndexError):  # no Linux, or it is not shown: the known work still tells
            busy = time.process_time()
        return cls(time.perf_counter(), busy, time.process_time())

    def used_by_others(self) -> float:
        """The share of the processors since then, where hardly any were idle."""
        end = _Processors.now()
        whole = (end.clock - self.clock) * (os.cpu_count() or 1)
        if end.busy - self.busy < _FULL * whole:
            return 0.0
        return max(0.0, (end.busy - self.busy - (end.own - self.own)) / whole)
