"""Searches for tests: strategies, a proxy that keeps a log, an executor that is moved by hand, a loop over them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from nfsearch.proxies import Evaluation, Job, Proxy, Report
from nfsearch.search import STRATEGIES, Budgets, Candidate, Executor, History, Limits, Problem, Strategy
from nfsearch.search.executor import Ended, Handle, Reported, Running, WorkerSettings
from nfsearch.search.executors.local import LocalExecutor, LocalSettings
from nfsearch.search.known import fitting, locate
from nfsearch.search.loop import Loop
from nfsearch.search.study import create_study, open_store
from nfsearch.space import Architecture, SearchSpace
from nfsearch.support.metrics import BYTES, Measurements, Metric
from nfsearch.testing.samples import FIDELITY, LOSS, TIME, SampleProxy, candidate, latency, small_space

OBJECTIVES = ("loss", "tpot")
METRICS = {metric.name: metric for metric in (LOSS, TIME, Metric("memory", BYTES))}


def strategy(
    name: str = "aging",
    space: SearchSpace | None = None,
    budget: float | None = None,
    estimate: Callable[[Architecture], Measurements] = latency,
    limits: dict[str, float] | None = None,
    objectives: tuple[str, ...] = OBJECTIVES,
    **settings: Any,
) -> Strategy:
    kind = STRATEGIES.find(name)
    tournament = {"tournament": 2} if name == "aging" else {}
    chosen = kind.Settings.model_validate({"evaluations": 12, "population": 4, **tournament, **settings})
    space = space or small_space()
    most = {**(limits or {}), **({} if budget is None else {"tpot": budget})}
    budgets = Budgets(estimate, Limits(most, METRICS))
    known, _ = fitting(locate(space, chosen.seeds_known), budgets)
    return kind(Problem(space, budgets, objectives, FIDELITY, chosen.seed, known), chosen)


def loss_of(found: Candidate) -> float | None:
    return found.value("loss") if found.state == "done" else None


def search(strategy: Strategy, count: int, losses: Callable[[int], float | None] | None = None) -> History:
    """What one worker would find: the history after `count` proposals."""
    rng = random.Random(1)
    history = History()
    for index in range(count):
        proposal = strategy.propose(index, history)
        history.append(candidate(index, proposal, losses(index) if losses else rng.random()))
    return history


class FakeProxy(SampleProxy):
    """Writes a line to `log` for each evaluation that begins."""

    def __init__(self, log: Path | None = None, deed: Callable[[Job, Evaluation], Evaluation] | None = None) -> None:
        super().__init__(deed)
        self.log = log

    def evaluate(self, job: Job, report: Report) -> Evaluation:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{job.architecture}\n")
        return super().evaluate(job, report)


class HandExecutor:
    """Evaluates nothing by itself: each look ends the job that was submitted `delay` looks before, so that several run
    at a time without processes and without clocks."""

    Settings: ClassVar[type[WorkerSettings]] = LocalSettings

    def __init__(self, proxy: Proxy, workers: int, delay: Callable[[int], int] = lambda number: 1) -> None:
        self.proxy, self.workers, self.delay = proxy, workers, delay
        self.looks = self.submitted = 0
        self.jobs: list[tuple[Job, int]] = []  # and the look at which each ends
        self.entered = self.left = False

    def __enter__(self) -> Self:
        self.entered = True
        return self

    def __exit__(self, *_: object) -> None:
        self.left = True

    @property
    def free(self) -> int:
        return self.workers - len(self.jobs)

    @property
    def running(self) -> Sequence[Running]:
        return [Running(job, 1.0) for job, _ in self.jobs]

    def submit(self, job: Job) -> None:
        assert self.entered
        assert self.free > 0
        self.jobs.append((job, self.looks + self.delay(self.submitted)))
        self.submitted += 1

    def cancel(self, job: Job) -> None:
        self.jobs = [(each, end) for each, end in self.jobs if each != job]

    def events(self, handle: Handle, timeout: float) -> None:
        self.looks += 1
        for job, end in list(self.jobs):
            if end <= self.looks and (job, end) in self.jobs:
                found = self.proxy.evaluate(job, lambda tokens, loss, job=job: handle(Reported(job, tokens, loss)))  # type: ignore[misc]
                if (job, end) in self.jobs:  # not cancelled at a report
                    self.jobs.remove((job, end))
                    handle(Ended(job, found, None, 1.0))


def loop(
    folder: Path, executor: Executor | Proxy | None = None, *, resume: bool = False, rule: Any = None,
    stop: Callable[[], bool] = lambda: False, **settings: Any,
) -> Loop:  # fmt: skip
    """A search in this process, whose study is in `folder`; `executor` may be a proxy to evaluate with."""
    chosen = strategy(**settings)
    folder.mkdir(exist_ok=True)
    journal = folder / "study.journal"
    fingerprint = {"seed": chosen.settings.seed, "space": chosen.space.notation}  # type: ignore[attr-defined]
    if not resume:
        objectives = [METRICS[name] for name in chosen.problem.objectives]  # type: ignore[attr-defined]
        create_study(journal, "run", objectives=objectives, fingerprint=fingerprint)
    store = open_store(journal, metrics=METRICS, fingerprint=fingerprint)
    if executor is None or not hasattr(executor, "submit"):
        executor = LocalExecutor(LocalSettings(), executor or FakeProxy(), "cpu")  # type: ignore[arg-type]
    limits = chosen.budgets.limits  # type: ignore[attr-defined]
    evaluations = chosen.settings.evaluations  # type: ignore[attr-defined]
    return Loop(chosen, store, executor, limits, evaluations=evaluations, rule=rule, stop=stop)  # type: ignore[arg-type]
