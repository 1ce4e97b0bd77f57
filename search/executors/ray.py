"""Jobs evaluated by Ray actors, on one machine or a cluster. What survives: a worker that dies, hangs or grows."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar

from typing_extensions import Self

from nfsearch.proxies import Job, Proxy
from nfsearch.search.executor import Ended, Handle, Outcome, Reported, Running, WorkerSettings
from nfsearch.search.executors.cluster import RaySettings, cluster
from nfsearch.search.executors.worker import Worker

START = 120  # seconds that a worker may take to start
STARTS = 3  # deaths of starting workers, in a row, that end the search

logger = logging.getLogger(__name__)


@dataclass
class Task:
    """A job on its way to its end."""

    job: Job
    attempt: int = 0
    spent: float = 0.0  # seconds of attempts that ended
    cancelled: bool = False


@dataclass
class Slot:
    """A place for one worker, and what that worker is doing."""

    actor: Any
    pending: Any = None  # the call it is busy with
    task: Task | None = None  # None while it starts
    began: float = 0.0
    reports: int = 0  # of the task that were handed over
    asked: Any = None  # the call for more reports under way


class RayExecutor:
    """Starts workers while there is more to do than they can. The proxy travels to each by pickle.

    An ArithmeticError of the proxy (a loss that diverged) fails the job and keeps the worker; any other exception
    replaces the worker too. Neither is retried: the same seed would fail again. A worker that dies or runs out of time
    is replaced and its job retried. A worker that holds too much memory is replaced when its job has ended.
    """

    Settings: ClassVar[type[WorkerSettings]] = RaySettings

    def __init__(self, settings: RaySettings, proxy: Proxy, device: str) -> None:
        self._settings, self._proxy, self._cuda = settings, proxy, device == "cuda"
        self._waiting: list[Task] = []
        self._slots: list[Slot] = []
        self._deaths = 0  # of starting workers, since one last started
        self._exit = ExitStack()
        self.workers = 0

    def __enter__(self) -> Self:
        self.workers = self._exit.enter_context(cluster(self._settings, self._cuda))
        import ray

        self._memory = ray.cluster_resources().get("memory", math.inf) / self.workers
        if self._settings.max_memory_gb:
            self._memory = self._settings.max_memory_gb * 1e9
        return self

    def __exit__(self, *_: object) -> None:
        for slot in list(self._slots):
            self._drop(slot)
        self._exit.close()

    @property
    def free(self) -> int:
        return self.workers - len(self._waiting) - sum(slot.task is not None for slot in self._slots)

    @property
    def running(self) -> Sequence[Running]:
        now = time.monotonic()
        return [
            Running(slot.task.job, now - slot.began, slot.task.attempt)
            for slot in self._slots
            if slot.task and not slot.task.cancelled
        ]

    def submit(self, job: Job) -> None:
        self._waiting.append(Task(job))

    def cancel(self, job: Job) -> None:
        self._waiting = [task for task in self._waiting if task.job != job]
        for slot in self._slots:
            if slot.task and slot.task.job == job:
                slot.task.cancelled = True
                slot.actor.cancel.remote(job.digest)

    def events(self, handle: Handle, timeout: float) -> None:
        import ray

        self._hand_out()
        busy = [slot for slot in self._slots if slot.pending is not None]
        if not busy:
            return
        oldest = max((time.monotonic() - slot.began for slot in busy if slot.task), default=0.0)
        patience = min(timeout, max(self._settings.timeout_s - oldest, 0.0))
        ready, _ = ray.wait([slot.pending for slot in busy], timeout=patience)
        for slot in busy:
            if slot.pending in ready:
                self._collect(slot, handle)
            elif time.monotonic() - slot.began > (limit := self._limit(slot)):
                self._lost(slot, f"no {'result' if slot.task else 'start'} within {limit:g} s", handle)
            else:
                self._listen(slot, handle)

    def _limit(self, slot: Slot) -> float:
        """Seconds that it may be busy. A start has its own: importing and reaching the device takes what it takes."""
        return self._settings.timeout_s if slot.task else max(self._settings.timeout_s, START)

    # --- handing out -----------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Gives every free worker something to do, and starts workers while there is more to do than they can."""
        for slot in self._slots:
            if slot.pending is None and self._waiting:
                self._begin(slot, self._waiting.pop(0))
        starting = sum(slot.pending is not None and slot.task is None for slot in self._slots)
        while len(self._slots) < self.workers and starting < len(self._waiting):
            self._slots.append(self._start())
            starting += 1

    def _start(self) -> Slot:
        import ray

        gpus = self._settings.gpus if self._cuda else 0
        threads = self._settings.cpus
        # Two calls at once: `reports` and `cancel` answer while `evaluate` runs
        options = {"num_cpus": threads, "num_gpus": gpus, "max_concurrency": 2, "max_restarts": 0}
        actor: Any = ray.remote(Worker).options(**options).remote(self._proxy, threads)
        return Slot(actor, pending=actor.start.remote(), began=time.monotonic())

    def _begin(self, slot: Slot, task: Task) -> None:
        task.attempt += 1
        slot.task, slot.reports, slot.asked, slot.began = task, 0, None, time.monotonic()
        slot.pending = slot.actor.evaluate.remote(task.job)

    # --- taking in -------------------------------------------------------------------------------------------------

    def _collect(self, slot: Slot, handle: Handle) -> None:
        """Takes the answer of a worker that has answered, or died."""
        import ray

        try:
            answer = ray.get(slot.pending)
        except ray.exceptions.RayError as error:
            logger.debug("a worker was lost: %s", error)
            self._lost(slot, "the worker process died (killed, crashed or out of memory)", handle)
            return
        slot.pending = None
        if slot.task is not None:
            task, slot.task = slot.task, None
            outcome, resident = answer
            task.spent += time.monotonic() - slot.began
            if not outcome.sound or resident > self._memory:
                self._drop(slot)
            self._end(task, outcome, handle)
        elif answer is not None:
            raise RuntimeError(f"a worker could not start: {answer}")
        else:
            self._deaths = 0

    def _lost(self, slot: Slot, error: str, handle: Handle) -> None:
        """The worker is gone or has to go: what it was doing is retried, then fails."""
        self._drop(slot)
        task = slot.task
        if task is None:
            self._deaths += 1
            if self._deaths == STARTS:
                raise RuntimeError(f"{STARTS} workers in a row did not start: {error}")
            return
        task.spent += time.monotonic() - slot.began
        if task.attempt <= self._settings.retries and not task.cancelled:
            self._waiting.insert(0, task)
        else:
            self._end(task, Outcome(None, error), handle)

    def _end(self, task: Task, outcome: Outcome, handle: Handle) -> None:
        handle(Ended(task.job, outcome.evaluation, outcome.error, task.spent, task.attempt))

    def _listen(self, slot: Slot, handle: Handle) -> None:
        """Asks a busy worker for its latest reports, without waiting for the answer."""
        import ray

        if slot.task is None or slot.task.cancelled:
            return
        try:
            if slot.asked is not None:
                if not ray.wait([slot.asked], timeout=0)[0]:
                    return
                reports = ray.get(slot.asked)
                slot.reports += len(reports)
                for tokens, loss in reports:
                    handle(Reported(slot.task.job, tokens, loss))
            slot.asked = slot.actor.reports.remote(slot.reports)
        except ray.exceptions.RayError:
            slot.asked = None  # it died: `pending` will tell

    def _drop(self, slot: Slot) -> None:
        import ray

        self._slots.remove(slot)
        ray.kill(slot.actor, no_restart=True)
