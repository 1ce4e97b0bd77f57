"""Pareto maths, for objectives of which smaller is better (moocore does the work, in C)."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import moocore
import numpy as np
import numpy.typing as npt

from nfsearch.proxies import Fidelity
from nfsearch.search.budgets import Limits
from nfsearch.search.candidate import Candidate, M, comparable


def front(points: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Which of the points [n, objectives] no other dominates. Of equal points all are on the front."""
    table = np.asarray(points, dtype=float)
    if not len(table):
        return np.zeros(0, dtype=bool)
    return moocore.is_nondominated(table, keep_weakly=True)


def ranked(candidates: Sequence[M], limits: Limits) -> list[M]:
    """The candidates that may be on one front, in their order: done at the most expensive fidelity that any is done at,
    as losses of different fidelities are not compared, and within the limits."""
    return [candidate for candidate in comparable(candidates) if not limits.excess(candidate.metrics)]


def members(candidates: Sequence[Candidate], objectives: Sequence[str], limits: Limits) -> list[Candidate]:
    """The candidates on the front of those that may be on one, in their order."""
    able = ranked(candidates, limits)
    points = [[candidate.value(name) for name in objectives] for candidate in able]
    return [candidate for candidate, on in zip(able, front(points), strict=True) if on]


def hypervolume(points: npt.ArrayLike, reference: npt.ArrayLike) -> float:
    """The volume that points [n, objectives] dominate below the reference point [objectives].

    Points that are not better than the reference in every objective add nothing."""
    table = np.asarray(points, dtype=float)
    return float(moocore.hypervolume(table, ref=np.asarray(reference, dtype=float))) if len(table) else 0.0


def reference_point(
    points: npt.ArrayLike, budgets: Sequence[float | None] = (), first: int | None = None
) -> npt.NDArray[np.float64]:
    """Where the hypervolume of a search is measured from, [objectives].

    An objective with a budget is measured from the budget, which no candidate exceeds. Any other is measured from the
    worst of the `first` points (all, if None), which is to be the first population in the order it finished, plus a
    tenth of their range so that the worst counts as well. So the reference is fixed once that population is there:
    after it the hypervolume of a search can only grow, and is the same when read again from its study.

    points: [n, objectives] with n > 0.
    """
    table = np.asarray(points, dtype=float)[:first]
    worst, best = table.max(axis=0), table.min(axis=0)
    margin = np.where(worst > best, worst - best, np.abs(worst)) * 0.1
    reference = worst + margin
    for column, budget in enumerate(budgets):
        if budget is not None:
            reference[column] = budget
    return reference


class Front:
    """The front of a search while it grows: what `members` gives, at a cost that depends on the front's size alone."""

    def __init__(self, objectives: Sequence[str], limits: Limits) -> None:
        self._objectives, self._limits = objectives, limits
        self._fidelity: Fidelity | None = None
        self._points: list[tuple[float, ...]] = []
        self.members: list[Candidate] = []

    def add(self, candidate: Candidate) -> None:
        if candidate.state != "done":
            return
        if self._fidelity is None or self._fidelity < candidate.fidelity:
            self._fidelity, self._points, self.members = candidate.fidelity, [], []
        if candidate.fidelity != self._fidelity or self._limits.excess(candidate.metrics):
            return
        point = tuple(candidate.value(name) for name in self._objectives)
        if any(dominates(other, point) for other in self._points):
            return
        kept = [place for place, other in enumerate(self._points) if not dominates(point, other)]
        self._points = [*(self._points[place] for place in kept), point]
        self.members = [*(self.members[place] for place in kept), candidate]

    @property
    def best(self) -> Candidate | None:
        """The member with the lowest first objective; of equal ones the oldest."""
        first = min(range(len(self._points)), key=lambda place: self._points[place][0], default=None)
        return None if first is None else self.members[first]


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a point is as low in everything as another, and lower in something."""
    return one != other and all(map(operator.le, one, other))
