"""Where a search stands, for whoever is watching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from nfsearch.search.budgets import Limits
from nfsearch.search.candidate import Candidate, State
from nfsearch.search.history import History
from nfsearch.search.pareto import Front

RECENT = 50  # finished candidates that the estimate of the time left is made from


@dataclass(frozen=True)
class Training:
    """A candidate being evaluated."""

    index: int
    architecture: str  # in notation, with its width
    seconds: float  # since this attempt began
    attempt: int
    tokens: int | None = None
    loss: float | None = None  # of training, as last reported
    of: int = 0  # tokens that it is to see


@dataclass(frozen=True)
class Standing:
    """What changes only when a candidate finishes."""

    finished: int = 0  # candidates
    states: Mapping[State, int] = field(default_factory=dict)  # how many of them ended so
    refused: Mapping[str, int] = field(default_factory=dict)  # reason -> drafts refused before training
    best: Candidate | None = None  # the member of the front with the lowest first objective
    front: tuple[int, ...] = ()  # candidate numbers


class Tally:
    """Keeps the standing of a search up to date, at a cost that does not grow with the number of candidates."""

    def __init__(self, objectives: Sequence[str], limits: Limits, candidates: Iterable[Candidate] = ()) -> None:
        self._front = Front(objectives, limits)
        self._states: Counter[State] = Counter()
        self._refused: Counter[str] = Counter()
        for candidate in candidates:
            self.add(candidate)

    def add(self, candidate: Candidate) -> None:
        self._states[candidate.state] += 1
        self._refused.update(candidate.proposal.refused)
        self._front.add(candidate)

    @property
    def standing(self) -> Standing:
        return Standing(
            finished=sum(self._states.values()),
            states=dict(self._states),
            refused=dict(self._refused),
            best=self._front.best,
            front=tuple(candidate.number for candidate in self._front.members),
        )


@dataclass(frozen=True)
class Progress:
    """A snapshot of a search."""

    evaluations: int  # how many there shall be
    history: History  # which goes on growing
    workers: int
    running: tuple[Training, ...] = ()
    standing: Standing = field(default_factory=Standing)
    seconds: float = 0.0  # since this process started its search
    eta_seconds: float | None = None  # None until something was reported or has finished
    ended: str | None = None  # why the search ended before all evaluations

    @property
    def candidates(self) -> Sequence[Candidate]:
        """Those that had finished, in the order in which they did."""
        return self.history[: self.standing.finished]

    def count(self, state: State) -> int:
        """How many candidates ended so."""
        return self.standing.states.get(state, 0)


def eta_seconds(candidates: Sequence[Candidate], running: Sequence[Training], left: int, workers: int) -> float | None:
    """Time until `left` candidates have finished, the running ones among them, from the mean of the recent ones; before
    one has finished, from how far those have come that report. Who has seen all tokens and goes on, with tasks that
    follow, tells nothing."""
    seconds = [candidate.seconds for candidate in candidates[-RECENT:]]
    seconds = seconds or [
        task.seconds * task.of / task.tokens for task in running if task.tokens and task.tokens < task.of
    ]
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    spent = sum(min(task.seconds, mean) for task in running)
    return max(left * mean - spent, 0.0) / workers
