"""What most strategies have in common: seeded drafts, no design twice, none over the budget, and a clear end."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

from nfsearch.search.candidate import Proposal
from nfsearch.search.history import History
from nfsearch.search.strategy import Draft, Exhausted, Problem, SearchSettings
from nfsearch.space import Unreachable
from nfsearch.space.counting import in_full
from nfsearch.support.metrics import Measurements

RANDOM_TRIES = 2000  # random members looked at before the space counts as exhausted, or a budget as unreachable
SAMPLE_MISSES = 10  # samples in a row that found no member within the limits before there counts as being none
SEEN, BROKEN = "evaluated before", "outside the space's limits"


class DraftStrategy(ABC):
    """A strategy that drafts designs; this class drops those that were evaluated and those over a limit."""

    Settings: ClassVar[type[SearchSettings]] = SearchSettings

    def __init__(self, problem: Problem, settings: SearchSettings) -> None:
        self.problem, self.settings = problem, settings
        self.space, self.budgets = problem.space, problem.budgets

    @abstractmethod
    def drafts(self, rng: random.Random, index: int, history: History) -> Iterator[Draft | None]:
        """Designs to consider, best first; ends when there is no use in more. None: one that broke a limit."""

    def propose(self, index: int, history: History, running: Collection[str] = ()) -> Proposal:
        """See `Strategy.propose`."""
        rng = random.Random(f"{self.settings.seed}/{index}")  # of text: the same in every process
        refused: Counter[str] = Counter()
        closest: tuple[float, str] | None = None
        for draft in self._all_drafts(rng, index, history):
            if draft is None:
                refused[BROKEN] += 1
                continue
            digest = self.problem.job(draft.architecture).digest
            if history.evaluated(digest) or digest in running:
                refused[SEEN] += 1
                continue
            costs = self.budgets.estimate(draft.architecture)
            over = self.budgets.limits.excess(costs)
            if not over:
                return self._proposal(index, draft, costs, refused)
            refused[f"over the limit on {' and '.join(over)}"] += 1
            ratio, words = max((ratio, f"{name}: {words}") for name, (ratio, words) in over.items())
            if closest is None or ratio < closest[0]:
                closest = ratio, f"{draft.architecture} ({words})"
        raise self._nothing(refused, closest, first=not (history or running))

    def _all_drafts(self, rng: random.Random, index: int, history: History) -> Iterator[Draft | None]:
        if index < len(self.problem.known):
            yield self.problem.known[index]
        yield from self.drafts(rng, index, history)

    def random_drafts(self, rng: random.Random) -> Iterator[Draft | None]:
        misses = 0
        for _ in range(RANDOM_TRIES):
            try:
                member = self.space.sample(rng, fits=self.budgets.fit)
            except Unreachable:
                misses += 1
                if misses == SAMPLE_MISSES:
                    raise
                yield None
            else:
                misses = 0
                yield Draft(member.architecture, member.answers, "random")

    def _proposal(self, index: int, draft: Draft, costs: Measurements, refused: Mapping[str, int]) -> Proposal:
        # A generation is a label: as many children as the population has members.
        generation = index // self.settings.population
        job = self.problem.job(draft.architecture)
        return Proposal(index, job, draft.answers, draft.origin, generation, draft.parents, costs, dict(refused))

    def _nothing(self, refused: Counter[str], closest: tuple[float, str] | None, first: bool) -> Exception:
        reasons = ", ".join(f"{reason} {count} times" for reason, count in refused.most_common())
        if not first or closest is None:
            size = in_full(self.space.count())
            return Exhausted(f"no new design in {refused.total()} tries ({reasons}); the space has {size} at most")
        return ValueError(
            f"no member of the space keeps the limits: {refused.total()} tried ({reasons}); "
            f"the closest is {closest[1]}. Raise the limit, or let the space have smaller members"
        )
