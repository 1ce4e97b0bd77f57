"""Runs cases in a few worker processes, which are killed when they hang."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tests.fuzz import cases, targets

HANG = 10.0  # seconds of a case's processor time, and three times as many by the clock


@dataclass(frozen=True)
class Finding:
    """A case that did not end well. `python -m tests.fuzz --only SEED` makes it again."""

    seed: str
    target: str
    what: str


def run(number: int, seed: int, folder: Path, workers: int = 2) -> Iterator[Finding | None]:
    """A finding, or None, for each case as it ends."""
    targets.prepare(folder)
    seeds = iter([f"{seed}/{case}" for case in range(number)])
    running: dict[Connection, _Worker] = {}
    for name in range(workers):
        worker = _Worker(folder, folder / f"worker-{name}")
        running[worker.pipe] = worker
        worker.take(next(seeds, None))
    while any(worker.seed for worker in running.values()):
        ready = wait([pipe for pipe, worker in running.items() if worker.seed], timeout=0.5)
        for pipe in list(running):
            worker = running[pipe]
            if worker.seed is None or (pipe not in ready and not worker.hangs()):
                continue
            finding = worker.finding(pipe in ready)
            if not worker.process.is_alive() or pipe not in ready:
                worker.process.kill()
                del running[pipe]
                worker = _Worker(folder, worker.place)
                running[worker.pipe] = worker
            worker.take(next(seeds, None))
            yield finding
    for worker in running.values():
        worker.process.kill()
        worker.process.join()


class _Worker:
    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.place, self.began, self.used = folder, place, 0.0, 0.0
        self.seed: str | None = None  # of the case that it is at
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other, folder, place), daemon=True)
        self.process.start()
        self.pipe.recv()  # it is ready

    def take(self, seed: str | None) -> None:
        self.seed = seed
        if seed:
            self.began, self.used = time.monotonic(), _seconds(self.process.pid)
            self.pipe.send(seed)

    def hangs(self) -> bool:
        late = time.monotonic() - self.began > 3 * HANG
        return late or _seconds(self.process.pid) - self.used > HANG

    def finding(self, ended: bool) -> Finding | None:
        """Of the case that ended, or did not."""
        assert self.seed
        name, what = _target(self.seed, self.folder).name, f"more than {HANG:.0f} s"
        if ended:
            try:
                what = self.pipe.recv()
            except EOFError:
                what = "the process died"
        return Finding(self.seed, name, what) if what else None


def judged(seed: str, folder: Path, place: Path) -> str | None:
    """Makes one case, in this process, and says what is wrong with it."""
    target = _target(seed, folder)
    return cases.judge(target, cases.make(target, seed, place))


def _work(pipe: Connection, folder: Path, place: Path) -> None:
    os.environ["NFSEARCH_CACHE"] = str(folder / "cache")
    pipe.send("ready")
    while True:
        pipe.send(judged(pipe.recv(), folder, place))


def _target(seed: str, folder: Path) -> targets.Target:
    """The targets take turns."""
    known = targets.all_of(folder)
    return known[int(seed.partition("/")[2]) % len(known)]


def _seconds(process: int | None) -> float:
    """Processor time of a process; 0 once it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
