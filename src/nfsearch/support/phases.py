"""Where the time of a piece of work goes: the work names its phases, and they cost nothing where nobody watches."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

REST = "rest"  # what is in no phase


class Stopwatch:
    """Seconds by phase, each without the phases inside it, and how often each was entered."""

    def __init__(self, wait: Callable[[], object]) -> None:
        """`wait` returns once the device has done all that it was given; called wherever a phase begins or ends."""
        self.seconds: dict[str, float] = {}
        self.times: Counter[str] = Counter()
        self._wait, self._open = wait, [REST]
        wait()
        self._since = time.perf_counter()

    def mark(self) -> None:
        """Books the time since the last mark on the innermost open phase."""
        self._wait()
        now = time.perf_counter()
        name = self._open[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.mark()
        self._open.append(name)
        self.times[name] += 1
        try:
            yield
        finally:
            self.mark()
            self._open.pop()


_watching: list[Stopwatch] = []  # the last one counts


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What is inside belongs to the phase `name`, if somebody watches."""
    if not _watching:
        yield
        return
    with _watching[-1].phase(name):
        yield


@contextmanager
def watched(wait: Callable[[], object]) -> Iterator[Stopwatch]:
    """Times all phases inside; what is in none of them is the rest."""
    watch = Stopwatch(wait)
    _watching.append(watch)
    try:
        yield watch
    finally:
        watch.mark()
        _watching.pop()
