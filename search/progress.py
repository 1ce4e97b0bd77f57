"""Where a search stands, for whoever is watching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nfsearch.search.budgets import Limits
from nfsearch.search.candidate import Candidate
from nfsearch.search.pareto import members

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


@dataclass(frozen=True)
class Standing:
    """What changes only when a candidate finishes."""

    refused: Mapping[str, int] = field(default_factory=dict)  # reason -> drafts refused before training
    best: Candidate | None = None  # the member of the front with the lowest first objective
    front: tuple[int, ...] = ()  # candidate numbers

    @classmethod
    def of(cls, candidates: Sequence[Candidate], objectives: Sequence[str], limits: Limits) -> Standing:
        refused: Counter[str] = Counter()
        for candidate in candidates:
            refused.update(candidate.proposal.refused)
        front = members(candidates, objectives, limits)
        best = min(front, key=lambda each: (each.value(objectives[0]), each.number), default=None)
        return cls(refused, best, tuple(candidate.number for candidate in front))


@dataclass(frozen=True)
class Progress:
    """A snapshot of a search."""

    evaluations: int  # how many there shall be
    candidates: Sequence[Candidate]  # in the order they finished
    workers: int
    running: tuple[Training, ...] = ()
    standing: Standing = field(default_factory=Standing)
    seconds: float = 0.0  # since this process started its search
    eta_seconds: float | None = None  # None until something has finished
    ended: str | None = None  # why the search ended before all evaluations

    def count(self, state: str) -> int:
        """How many candidates ended so."""
        return sum(candidate.state == state for candidate in self.candidates)


def eta_seconds(candidates: Sequence[Candidate], running: Sequence[Training], left: int, workers: int) -> float | None:
    """Time until `left` candidates have finished, the running ones among them, from the mean of the recent ones."""
    if not candidates:
        return None
    recent = candidates[-RECENT:]
    mean = sum(candidate.seconds for candidate in recent) / len(recent)
    spent = sum(min(task.seconds, mean) for task in running)
    return max(left * mean - spent, 0.0) / workers
