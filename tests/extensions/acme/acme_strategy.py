"""A strategy: mutate the best design so far, or begin anew."""

from __future__ import annotations

import random
from collections.abc import Iterator

from pydantic import Field

from nfsearch.search import History, SearchSettings
from nfsearch.search.strategies.drafts import DraftStrategy
from nfsearch.search.strategy import Draft
from nfsearch.space import Unreachable


class ClimbSettings(SearchSettings):
    """How greedy it is."""

    anew: float = Field(default=0.2, ge=0, le=1, description="share of designs that begin anew")


class Climb(DraftStrategy):
    """Hill climbing on the first objective."""

    Settings = ClimbSettings
    settings: ClimbSettings

    def drafts(self, rng: random.Random, index: int, history: History) -> Iterator[Draft | None]:
        known = history.comparable
        if known and rng.random() >= self.settings.anew:
            best = min(known, key=lambda found: (found.value(self.problem.objectives[0]), found.number))
            for _ in range(50):
                try:
                    member, kind = self.space.mutate(best.proposal.answers, rng, fits=self.budgets.fit)
                except Unreachable:
                    yield None
                else:
                    yield Draft(member.architecture, member.answers, f"mutation:{kind}", (best.number,))
        yield from self.random_drafts(rng)
