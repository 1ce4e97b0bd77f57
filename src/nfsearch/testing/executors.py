"""The suite that every executor passes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from nfsearch.proxies import Evaluation, Job
from nfsearch.search import EXECUTORS, Executor
from nfsearch.search.executor import Ended, Reported
from nfsearch.support.notes import note
from nfsearch.testing.samples import SampleProxy, problem

PATIENCE = 120.0  # seconds for an executor to start and do a job

Event = Reported | Ended


def say(job: Job, found: Evaluation) -> Evaluation:
    note("something ran another way")
    return found


def diverge(job: Job, found: Evaluation) -> Evaluation:
    raise FloatingPointError("the loss is nan")


def jobs(count: int) -> list[Job]:
    """Different ones, which are quickly done."""
    given = problem()
    architecture = given.space.sample(random.Random(0)).architecture
    return [Job(architecture, given.fidelity, seed) for seed in range(count)]


class ExecutorSuite:
    """Name the executor, and its settings."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}

    def executor(self, deed: Callable[[Job, Evaluation], Evaluation] | None = None) -> Executor:
        kind = EXECUTORS.find(self.name)
        return kind(kind.Settings(executor=self.name, **self.settings), SampleProxy(deed), "cpu")

    def work(self, executor: Executor, given: list[Job]) -> list[Event]:
        """All events of these jobs, each submitted when the executor has use for it."""
        waiting, seen, left = list(given), list[Event](), len(given)
        limit = time.monotonic() + PATIENCE
        while left:
            assert time.monotonic() < limit, f"{left} of {len(given)} jobs did not end"
            while waiting and executor.free > 0:
                executor.submit(waiting.pop(0))
            before = len(seen)
            executor.events(seen.append, 0.2)
            left -= sum(isinstance(event, Ended) for event in seen[before:])
        return seen

    def test_each_job_ends_once_with_what_the_proxy_gives(self) -> None:
        given = jobs(5)
        with self.executor() as executor:
            assert executor.workers >= 1
            assert executor.free >= 1
            seen = self.work(executor, given)
            assert not executor.running
            assert executor.free == executor.workers
        ended = [event for event in seen if isinstance(event, Ended)]
        assert sorted(event.job.seed for event in ended) == list(range(5))
        for event in ended:
            assert event.evaluation == SampleProxy().evaluate(event.job, lambda *report: None)
            assert event.error is None
            assert event.attempts == 1
            assert event.seconds >= 0

    def test_an_error_fails_its_job_alone_and_says_why(self) -> None:
        with self.executor(diverge) as executor:
            (ended,) = [event for event in self.work(executor, jobs(1)) if isinstance(event, Ended)]
        assert ended.evaluation is None
        assert "the loss is nan" in (ended.error or "")

    def test_what_a_worker_says_comes_with_the_evaluation(self) -> None:
        with self.executor(say) as executor:
            ended = [event for event in self.work(executor, jobs(2)) if isinstance(event, Ended)]
        assert [event.evaluation and event.evaluation.notes for event in ended] == [("something ran another way",)] * 2

    def test_a_cancelled_job_makes_room(self) -> None:
        first, second = jobs(2)
        with self.executor() as executor:
            executor.submit(first)
            executor.cancel(first)
            seen = self.work(executor, [second])
        assert [event.job for event in seen if isinstance(event, Ended)][-1] == second
