"""Jobs evaluated by Ray actors, on one machine or a cluster. What survives: a worker that dies, hangs or grows; a
machine that goes, comes, or lacks what is needed."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from typing_extensions import Self

from nfsearch.proxies import Bounds, Foresees, Job, Proxy
from nfsearch.search.executor import Ended, Handle, Outcome, Reported, Running, WorkerSettings
from nfsearch.search.executors.cluster import RaySettings, cluster, require_room, this_machine
from nfsearch.search.executors.places import LOOK, Places
from nfsearch.search.executors.worker import Worker

START = 120.0  # seconds that a worker may take to start; and for which a search waits for a place to start one
ARRIVE = 30.0  # seconds without a process after which a worker is started on another node, where there is room

logger = logging.getLogger(__name__)


@dataclass
class Task:
    """A job on its way to its end."""

    job: Job
    attempt: int = 0
    excused: int = 0  # attempts that ended because a machine was lost
    spent: float = 0.0  # seconds of attempts that ended
    cancelled: bool = False
    avoid: str = ""  # the node of the last attempt


@dataclass
class Slot:
    """A worker on a node, and what it is doing: it waits for a process, starts, and is then ready for tasks."""

    actor: Any
    node: str
    pending: Any  # the call it is busy with
    began: float
    state: Literal["arriving", "starting", "ready"] = "arriving"
    task: Task | None = None
    reports: int = 0  # of the task that were handed over
    asked: Any = None  # the call for more reports under way


class RayExecutor:
    """Starts workers while there is more to do than they can. The proxy travels to each by pickle.

    An ArithmeticError of the proxy (a loss that diverged) fails the job and keeps the worker; any other exception
    replaces the worker too. Neither is retried: the same seed would fail again. Only an OSError is, on another machine
    if there is one: this one may lack something, which the start of the next worker on it will tell. A worker that dies
    or runs out of time is replaced and its job retried. One that takes too much memory is replaced.

    A machine that is lost is no fault of its jobs; one that joins is used. One on which the proxy's `start` raises
    OSError gets no more workers. The search ends when no machine is left to start a worker on.
    """

    Settings: ClassVar[type[WorkerSettings]] = RaySettings

    def __init__(self, settings: RaySettings, proxy: Proxy, device: str) -> None:
        """Raises ValueError where the settings ask for more than there is, and where there is no such cluster."""
        self._settings, self._proxy, self._cuda = settings, proxy, device == "cuda"
        self._waiting: list[Task] = []
        self._slots: list[Slot] = []
        self._exit = ExitStack()
        self.workers = 0
        self._alone = 0.0  # since when there is no worker that has a process
        if isinstance(proxy, Foresees):
            proxy.bound(Bounds(settings.longest, min(settings.gpus, 1.0) or 1.0))
        if settings.address:
            with cluster(settings):
                Places(settings, self._cuda)
        else:
            require_room(settings, self._cuda, [this_machine(self._cuda)], "this machine has")

    def __enter__(self) -> Self:
        self._lifelines = self._exit.enter_context(cluster(self._settings))
        with self._exit.pop_all() as on_error:
            self._places = Places(self._settings, self._cuda)
            self._exit = on_error.pop_all()
        self.workers = self._places.room
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

        if self._lifelines.answer():  # else nothing is begun until it does, or this raises
            self._look(handle)
            self._hand_out()
            self._require_a_place()
        busy = [slot for slot in self._slots if slot.pending is not None]
        if not busy:
            if self._waiting:
                time.sleep(min(timeout, LOOK))
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
        """Seconds that it may be busy. A start has its own: importing and reaching the device takes what it takes. A
        worker that waits for a process keeps nobody waiting."""
        if slot.state == "arriving":
            return math.inf
        return self._settings.timeout_s if slot.task else max(self._settings.timeout_s, START)

    # --- where workers run -----------------------------------------------------------------------------------------

    def _look(self, handle: Handle) -> None:
        """Takes in which machines there are, and gives up the workers on those that are gone."""
        self._places.look()
        self.workers = self._places.room
        for slot in list(self._slots):
            if not self._places.nodes[slot.node].alive:
                self._lost(slot, "its machine was lost", handle)

    def _require_a_place(self) -> None:
        """Raises RuntimeError where jobs wait and no worker can be started for them."""
        now = time.monotonic()
        if not self._waiting or any(slot.state != "arriving" for slot in self._slots):
            self._alone = 0.0
            return
        self._alone = self._alone or now
        if self._slots:
            if now - self._alone > START:
                raise RuntimeError(f"others have taken all CPUs or GPUs of the Ray cluster for {START:g} s")
        elif self._places.trouble:
            raise RuntimeError(self._places.trouble)
        elif not self._settings.address or now - self._alone > START:
            raise RuntimeError("no machine of the Ray cluster is left that has room for a worker")

    # --- handing out -----------------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Gives every free worker something to do, and starts workers while there is more to do than they can."""
        ready = [slot for slot in self._slots if slot.state == "ready"]
        for slot in ready:
            if slot.pending is None and (task := self._next_for(slot, {each.node for each in ready})):
                self._waiting.remove(task)
                self._begin(slot, task)
        self._move_on()
        starting = len(self._slots) - len(ready)
        while starting < len(self._waiting) and (node := self._room()):
            self._slots.append(self._start(node))
            starting += 1

    def _next_for(self, slot: Slot, nodes: set[str]) -> Task | None:
        """What waits, but for what failed on this node and may be done on another of the `nodes`."""
        return next((task for task in self._waiting if task.avoid != slot.node or nodes == {slot.node}), None)

    def _room(self) -> str | None:
        """A node to start a worker on."""
        if self._settings.count != "auto" and len(self._slots) >= self._settings.count:
            return None
        return self._places.choose(slot.node for slot in self._slots)

    def _move_on(self) -> None:
        """Gives up a worker that waits for the CPUs and GPUs that others have taken, where another node has room."""
        now = time.monotonic()
        for slot in [slot for slot in self._slots if slot.state == "arriving" and now - slot.began > ARRIVE]:
            if self._places.choose((each.node for each in self._slots), but=slot.node):
                self._places.nodes[slot.node].occupied = now
                self._drop(slot)

    def _start(self, node: str) -> Slot:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        gpus = self._settings.gpus if self._cuda else 0
        threads, most = self._settings.cpus, self._settings.max_memory_gb
        # Two calls at once: `reports` and `cancel` answer while `evaluate` runs
        options = {"num_cpus": threads, "num_gpus": gpus, "max_concurrency": 2, "max_restarts": 0}
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        starter: Any = ray.remote(Worker).options(scheduling_strategy=there, **options)
        actor = starter.remote(self._proxy, threads, most and most * 1e9)
        return Slot(actor, node, pending=actor.arrived.remote(), began=time.monotonic())

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
            outcome, resident = answer
            self._ended(slot, outcome, resident, handle)
        elif slot.state == "arriving":
            slot.state, slot.began, slot.pending = "starting", time.monotonic(), slot.actor.start.remote()
        elif answer is not None:
            self._drop(slot)
            self._places.failed(slot.node, answer)
        else:
            slot.state = "ready"
            self._places.started(slot.node)

    def _ended(self, slot: Slot, outcome: Outcome, resident: int, handle: Handle) -> None:
        """Takes in how an attempt of a worker that is still there ended."""
        task, slot.task = slot.task, None
        assert task is not None
        task.spent += time.monotonic() - slot.began
        most = self._settings.max_memory_gb
        if not outcome.sound or resident > (most * 1e9 if most else self._places.nodes[slot.node].memory):
            self._drop(slot)
        if outcome.again:
            self._again(task, slot.node, outcome, handle)
        else:
            self._end(task, outcome, handle)

    def _lost(self, slot: Slot, error: str, handle: Handle) -> None:
        """The worker is gone or has to go: what it was doing is retried, then fails."""
        self._drop(slot)
        self._places.look(now=True)
        task, there = slot.task, self._places.nodes[slot.node].alive
        if task is not None:
            task.spent += time.monotonic() - slot.began
            task.excused += not there
            self._again(task, slot.node, Outcome(None, error), handle)
        elif there:
            self._places.died(slot.node, error)

    def _again(self, task: Task, node: str, outcome: Outcome, handle: Handle) -> None:
        """Another attempt, elsewhere if possible, or none if there were enough."""
        task.avoid = node
        if task.attempt - task.excused <= self._settings.retries and not task.cancelled:
            self._waiting.insert(0, task)
        else:
            self._end(task, outcome, handle)

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
