"""Where a search stands, for whoever is watching."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from nfsearch.search.candidate import Candidate
from nfsearch.search.pareto import front

RECENT = 50  # finished candidates that the estimate of the time left is made from


@dataclass(frozen=True)
class Running:
    """A candidate in training."""

    index: int
    architecture: str  # in notation, with its width
    seconds: float  # since this attempt began
    attempt: int
    tokens: int | None = None
    loss: float | None = None  # of training, as last reported


@dataclass(frozen=True)
class Progress:
    """A snapshot of a search."""

    evaluations: int  # how many there shall be
    candidates: Sequence[Candidate]  # finished, in the order they finished
    workers: int
    running: tuple[Running, ...] = ()
    refused: Mapping[str, int] = field(default_factory=dict)  # reason -> drafts refused before training
    best: Candidate | None = None  # the one with the lowest loss
    front: tuple[int, ...] = ()  # candidate numbers
    seconds: float = 0.0  # since this process started its search
    eta_seconds: float | None = None  # None until something has finished
    ended: str | None = None  # why the search ended before all evaluations

    @property
    def failed(self) -> int:
        return sum(candidate.state == "failed" for candidate in self.candidates)


@dataclass(frozen=True)
class Standing:
    """What changes only when a candidate finishes."""

    refused: Mapping[str, int]
    best: Candidate | None
    front: tuple[int, ...]

    @classmethod
    def of(cls, candidates: Sequence[Candidate], objectives: Sequence[str]) -> Standing:
        refused: Counter[str] = Counter()
        for candidate in candidates:
            refused.update(candidate.proposal.refused)
        done = [candidate for candidate in candidates if candidate.state == "done"]
        if not done:
            return cls(refused, None, ())
        points = np.array([[candidate.values[objective] for objective in objectives] for candidate in done])
        best = min(done, key=lambda candidate: (candidate.score.loss, candidate.number))  # type: ignore[union-attr]
        members = tuple(candidate.number for candidate, on in zip(done, front(points), strict=True) if on)
        return cls(refused, best, members)


def eta_seconds(candidates: Sequence[Candidate], running: Sequence[Running], left: int, workers: int) -> float | None:
    """Time until `left` candidates have finished, the running ones among them, from the mean of the recent ones."""
    if not candidates:
        return None
    recent = candidates[-RECENT:]
    mean = sum(candidate.seconds for candidate in recent) / len(recent)
    spent = sum(min(task.seconds, mean) for task in running)
    return max(left * mean - spent, 0.0) / workers
