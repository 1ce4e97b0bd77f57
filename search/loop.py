"""The search loop: steady state on an executor.

A worker that becomes free gets the next child at once; there is no generation barrier. Results are recorded in the
order in which they finish, and every decision is made from the recorded ones, so with one worker a search is
deterministic and a resumed search goes on as if it had never stopped.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence

from nfsearch.proxies import Evaluation, Job
from nfsearch.search.budgets import Limits
from nfsearch.search.candidate import Candidate, Proposal, State
from nfsearch.search.executor import Ended, Executor, Reported, Running
from nfsearch.search.history import History
from nfsearch.search.progress import Progress, Tally, Training, eta_seconds
from nfsearch.search.rule import Rule
from nfsearch.search.strategy import Exhausted, Strategy
from nfsearch.search.study import Store

TICK = 0.5  # seconds between two looks at the running jobs
HOPELESS = 10  # candidates that fail before any does not, after which no more are tried

Tell = Callable[[Progress], None]


class Loop:
    """Has an executor evaluate what a strategy proposes until there are `evaluations` candidates, those of `history`
    counted, which are the store's unless given.

    `rule` is asked after each report of new tokens whether a job shall go on. `stop` is asked between two steps, and at
    each report, whether the search shall: it is what an interrupt sets. The objectives and their limits say what the
    best is. Where the first ten candidates fail there is something wrong with all, and the search ends.
    """

    def __init__(
        self,
        strategy: Strategy,
        store: Store,
        executor: Executor,
        limits: Limits,
        *,
        evaluations: int,
        history: Sequence[Candidate] | None = None,
        rule: Rule | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.strategy, self.store, self.executor, self.limits = strategy, store, executor, limits
        self.evaluations, self.rule, self.stop = evaluations, rule, stop
        self.history = History(store.candidates() if history is None else history)
        self._tally = Tally(store.objectives, limits, self.history)
        self._standing = self._tally.standing
        evaluated = {candidate.proposal.index for candidate in self.history}
        self._left = evaluations - sum(index < evaluations for index in evaluated)  # not proposed yet
        self._indices = (index for index in itertools.count() if index not in evaluated)
        self._index = next(self._indices)
        self._running: dict[Job, Proposal] = {}  # proposals handed to the executor
        self._curves: dict[Job, list[tuple[int, float]]] = {}
        self._ended: str | None = None
        self._began = time.monotonic()

    def run(self, tell: Tell = lambda progress: None) -> Progress:
        """Runs the search to its end, or until `stop` says so, and returns how it stands then; nothing is left to do
        for a finished one. Everything that finished is in the store, whatever is raised.

        tell: called about twice a second, and when something is reported or finished.
        Raises ValueError where no member of the space keeps the limits, and what the executor raises.
        """
        self._began = time.monotonic()
        # Proposed before the executor starts: an unreachable limit or an exhausted space is told at once
        first = self._next()
        if first is not None:
            with self.executor:
                self._submit(first)
                while self._running and not self.stop():
                    self._fill()
                    tell(self._progress())
                    self.executor.events(lambda event: self._take(event, tell), TICK)
                    self._fill()
        return self._progress()

    def _fill(self) -> None:
        """Hands out proposals while the executor has use for them."""
        while self.executor.free > 0 and not self.stop():
            proposal = self._next()
            if proposal is None:
                return
            self._submit(proposal)

    def _next(self) -> Proposal | None:
        if not self._left or self._ended:
            return None
        running = [job.digest for job in self._running]
        try:
            proposal = self.strategy.propose(self._index, self.history, running)
        except Exhausted as end:
            self._ended = str(end)
            return None
        self._index = next(self._indices)
        self._left -= 1
        return proposal

    def _submit(self, proposal: Proposal) -> None:
        self._running[proposal.job], self._curves[proposal.job] = proposal, []
        self.executor.submit(proposal.job)

    def _take(self, event: Reported | Ended, tell: Tell) -> None:
        """Takes in what the executor tells."""
        job = event.job
        if job not in self._running:
            return  # cancelled
        if isinstance(event, Ended):
            if event.evaluation is None and self.stop():
                return  # what asked for the end may have ended the workers too
            state: State = "failed" if event.evaluation is None else "done"
            self._record(job, state, event.evaluation, event.seconds, event.error, event.attempts)
            return
        curve = self._curves[job]
        if curve and event.tokens < curve[-1][0]:
            curve.clear()  # another attempt
        new = not curve or event.tokens > curve[-1][0]
        if new:
            curve.append((event.tokens, math.inf if math.isnan(event.loss) else event.loss))  # diverged either way
        if self.stop():
            self.executor.cancel(job)
        elif new and self.rule is not None and not self.rule.go_on(job, curve, self.history):
            running = {each.job: each for each in self.executor.running}[job]
            self.executor.cancel(job)
            found = Evaluation({}, event.tokens, running.seconds, tuple(curve))
            self._record(job, "stopped", found, running.seconds, None, running.attempt)
        else:
            tell(self._progress())

    def _record(
        self, job: Job, state: State, found: Evaluation | None, seconds: float, error: str | None, attempts: int
    ) -> None:
        proposal = self._running.pop(job)
        del self._curves[job]
        candidate = Candidate(self.store.count, proposal, state, found, seconds, error, attempts)
        self.store.add(candidate)
        self.history.append(candidate)
        self._tally.add(candidate)
        self._standing = self._tally.standing
        if self._standing.states.get("failed") == len(self.history) >= HOPELESS:
            self._ended = f"the first {len(self.history)} candidates failed, the last with: {error}"

    def _progress(self) -> Progress:
        workers = max(self.executor.workers, 1)
        running = tuple(self._training(each) for each in self.executor.running if each.job in self._running)
        left = len(self._running) + (0 if self._ended else self._left)
        return Progress(
            evaluations=self.evaluations,
            history=self.history,
            workers=self.executor.workers,
            running=running,
            standing=self._standing,
            seconds=time.monotonic() - self._began,
            eta_seconds=eta_seconds(self.history, running, left, workers),
            ended=self._ended,
        )

    def _training(self, each: Running) -> Training:
        curve = self._curves[each.job]
        tokens, loss = curve[-1] if curve else (None, None)
        index, architecture = self._running[each.job].index, str(each.job.architecture)
        return Training(index, architecture, each.seconds, each.attempt, tokens, loss, each.job.fidelity.tokens)
