"""The search loop: steady state on Ray actors.

A worker that becomes free gets the next child at once; there is no generation barrier. Results are recorded in the
order in which they finish, and every decision is made from the recorded ones, so with one worker a search is
deterministic and a resumed search goes on as if it had never stopped.
"""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from nfsearch.proxies import Score
from nfsearch.search.candidate import Candidate, Proposal, objective_value
from nfsearch.search.cluster import cluster
from nfsearch.search.progress import Progress, Running, Standing, eta_seconds
from nfsearch.search.settings import WorkerSettings
from nfsearch.search.strategy import Exhausted, Strategy
from nfsearch.search.study import Store
from nfsearch.search.worker import EvaluatorFactory, Outcome, Worker

TICK = 0.5  # seconds between two looks at the running candidates
START = 120  # seconds that a worker may take to start
STARTS = 3  # deaths of starting workers, in a row, that end the search

logger = logging.getLogger(__name__)


@dataclass
class Task:
    """A proposal on its way to being a candidate."""

    proposal: Proposal
    attempt: int = 0
    spent: float = 0.0  # seconds of attempts that ended
    error: str = ""


@dataclass
class Slot:
    """A place for one worker, and what that worker is doing."""

    actor: Any
    pending: Any = None  # the call it is busy with
    task: Task | None = None  # None while it starts
    began: float = 0.0
    latest: tuple[int, float] | None = None
    asked: Any = None  # the call of `latest` under way


class Engine:
    """Evaluates what a strategy proposes until the settings' number of evaluations is in the store.

    factory: makes the evaluator in each worker process; anything that pickles, e.g. `functools.partial` of a function
    of a module. The evaluator takes (Architecture.to_dict(), seed, report) and returns Score.to_dict(). An
    ArithmeticError of it (a loss that diverged) fails the candidate and keeps the worker; any other exception replaces
    the worker too. Neither is retried: the same seed would fail again. A worker that dies or runs out of time is
    replaced and its candidate retried. All candidates are trained with the search's seed.
    cuda: whether workers need the GPUs that the settings give them.
    """

    def __init__(
        self,
        strategy: Strategy,
        store: Store,
        factory: EvaluatorFactory,
        workers: WorkerSettings,
        *,
        cuda: bool = False,
    ) -> None:
        self.strategy, self.store, self.factory, self.workers, self.cuda = strategy, store, factory, workers, cuda
        self.history = store.candidates()
        evaluated = {candidate.proposal.index for candidate in self.history}
        self._indices = [i for i in range(strategy.settings.evaluations) if i not in evaluated][::-1]
        self._waiting: list[Task] = []  # the first one, and those to be tried again; they go before new ones
        self._slots: list[Slot] = []
        self._ended: str | None = None
        self._deaths = 0  # of starting workers, since one last started
        self._interrupted = threading.Event()
        self._standing = self._stand()

    def run(self, progress: Callable[[Progress], None] | None = None) -> Progress:
        """Runs the search to its end and returns how it stands then; nothing is left to do for a finished one.

        progress: called about twice a second, and when something finished.
        Raises ValueError where no member of the space keeps the budgets or there is no room for the workers,
        RuntimeError where Ray or the workers do not start, and KeyboardInterrupt, with everything that finished in the
        store, after Ctrl-C.
        """
        began = time.monotonic()
        # Proposed before Ray starts: an unreachable budget or an exhausted space is told at once
        if task := self._next_task():
            self._waiting.append(task)
            with self._deferred_interrupt(), cluster(self.workers, self.cuda) as count:
                try:
                    self._loop(count, lambda: progress and progress(self._progress(began, count)))
                finally:
                    self._stop()
            if self._interrupted.is_set():
                raise KeyboardInterrupt
        return self._progress(began, 0)

    def _loop(self, count: int, tell: Callable[[], Any]) -> None:
        import ray

        self._memory = ray.cluster_resources().get("memory", math.inf) / count
        if self.workers.max_memory_gb:
            self._memory = self.workers.max_memory_gb * 1e9
        while not self._interrupted.is_set():
            self._hand_out(count)
            busy = [slot for slot in self._slots if slot.pending is not None]
            if not busy:
                return
            tell()
            oldest = max((time.monotonic() - slot.began for slot in busy if slot.task), default=0.0)
            patience = min(TICK, max(self.workers.timeout_s - oldest, 0.0))
            ready, _ = ray.wait([slot.pending for slot in busy], timeout=patience)
            for slot in busy:
                if slot.pending in ready:
                    self._collect(slot)
                elif time.monotonic() - slot.began > (limit := self._limit(slot)):
                    self._lost(slot, f"no {'result' if slot.task else 'start'} within {limit:g} s")
                else:
                    self._listen(slot)

    def _limit(self, slot: Slot) -> float:
        """Seconds that it may be busy. A start has its own: importing and reaching the device takes what it takes."""
        return self.workers.timeout_s if slot.task else max(self.workers.timeout_s, START)

    # --- handing out -----------------------------------------------------------------------------------------------

    def _hand_out(self, count: int) -> None:
        """Gives every free worker something to do, and starts workers while there is more to do than they can."""
        free = [slot for slot in self._slots if slot.pending is None]
        for slot in free:
            task = self._next_task()
            if task is None:
                return
            self._begin(slot, task)
        starting = sum(slot.pending is not None and slot.task is None for slot in self._slots)
        waiting = 0 if self._ended else len(self._indices)
        while len(self._slots) < count and starting < waiting + len(self._waiting):
            self._slots.append(self._start())
            starting += 1

    def _next_task(self) -> Task | None:
        if self._waiting:
            return self._waiting.pop(0)
        if not self._indices or self._ended:
            return None
        running = [slot.task.proposal.architecture.digest for slot in self._slots if slot.task]
        try:
            proposal = self.strategy.propose(self._indices[-1], self.history, running)
        except Exhausted as end:
            self._ended = str(end)
            return None
        self._indices.pop()
        return Task(proposal)

    def _start(self) -> Slot:
        import ray

        gpus = self.workers.gpus if self.cuda else 0
        threads = self.workers.cpus
        # Two calls at once: `latest` answers while `evaluate` runs
        options = {"num_cpus": threads, "num_gpus": gpus, "max_concurrency": 2, "max_restarts": 0}
        actor: Any = ray.remote(Worker).options(**options).remote(self.factory, threads)
        return Slot(actor, pending=actor.start.remote(), began=time.monotonic())

    def _begin(self, slot: Slot, task: Task) -> None:
        task.attempt += 1
        slot.task, slot.latest, slot.asked, slot.began = task, None, None, time.monotonic()
        seed = self.strategy.settings.seed
        slot.pending = slot.actor.evaluate.remote(task.proposal.architecture.to_dict(), seed)

    # --- taking in -------------------------------------------------------------------------------------------------

    def _collect(self, slot: Slot) -> None:
        """Takes the answer of a worker that has answered, or died."""
        import ray

        try:
            answer = ray.get(slot.pending)
        except ray.exceptions.RayError as error:
            logger.debug("a worker was lost: %s", error)
            self._lost(slot, "the worker process died (killed, crashed or out of memory)")
            return
        slot.pending = None
        if slot.task is not None:
            task, slot.task = slot.task, None
            task.spent += time.monotonic() - slot.began
            self._record(task, answer)
            if not answer.sound or answer.resident > self._memory:
                self._drop(slot)
        elif answer is not None:
            raise RuntimeError(f"a worker could not start: {answer}")
        else:
            self._deaths = 0

    def _lost(self, slot: Slot, error: str) -> None:
        """The worker is gone or has to go: what it was doing is retried, then recorded as failed."""
        self._drop(slot)
        task = slot.task
        if task is None:
            self._deaths += 1
            if self._deaths == STARTS:
                raise RuntimeError(f"{STARTS} workers in a row did not start: {error}")
            return
        task.spent += time.monotonic() - slot.began
        if task.attempt <= self.workers.retries:
            self._waiting.append(task)
        else:
            self._record(task, Outcome(None, error))

    def _record(self, task: Task, outcome: Outcome) -> None:
        proposal, error = task.proposal, outcome.error
        score = Score.from_dict(outcome.score) if outcome.score is not None else None
        values = {}
        if score is not None:
            values = {name: objective_value(name, proposal, score) for name in self.store.objectives}
        number, state = len(self.history), "done" if score is not None else "failed"
        candidate = Candidate(number, proposal, state, score, values, task.spent, error, task.attempt)  # type: ignore[arg-type]
        self.store.add(candidate)
        self.history.append(candidate)
        self._standing = self._stand()

    def _listen(self, slot: Slot) -> None:
        """Asks a busy worker for its latest report, without waiting for the answer."""
        import ray

        if slot.task is None:
            return
        try:
            if slot.asked is not None:
                if not ray.wait([slot.asked], timeout=0)[0]:
                    return
                slot.latest = ray.get(slot.asked)
            slot.asked = slot.actor.latest.remote()
        except ray.exceptions.RayError:
            slot.asked = None  # it died: `pending` will tell

    # --- ending ----------------------------------------------------------------------------------------------------

    def _drop(self, slot: Slot) -> None:
        import ray

        self._slots.remove(slot)
        ray.kill(slot.actor, no_restart=True)

    def _stop(self) -> None:
        for slot in list(self._slots):
            self._drop(slot)

    @contextmanager
    def _deferred_interrupt(self) -> Iterator[None]:
        """Ctrl-C, once or many times, is noted; the loop sees it between two steps, never within a write."""
        if threading.current_thread() is not threading.main_thread():
            yield  # signals arrive elsewhere
            return
        before = signal.signal(signal.SIGINT, lambda *_: self._interrupted.set())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    # --- telling ---------------------------------------------------------------------------------------------------

    def _stand(self) -> Standing:
        return Standing.of(self.history, self.store.objectives)

    def _progress(self, began: float, count: int) -> Progress:
        now, standing = time.monotonic(), self._standing
        running = tuple(
            Running(
                task.proposal.index,
                str(task.proposal.architecture),
                now - slot.began,
                task.attempt,
                *(slot.latest or (None, None)),
            )
            for slot in self._slots
            if (task := slot.task)
        )
        left = len(self._waiting) + len(running) + (0 if self._ended else len(self._indices))
        return Progress(
            evaluations=self.strategy.settings.evaluations,
            candidates=tuple(self.history),
            workers=count,
            running=running,
            refused=standing.refused,
            best=standing.best,
            front=standing.front,
            seconds=now - began,
            eta_seconds=eta_seconds(self.history, running, left, max(count, 1)),
            ended=self._ended,
        )
