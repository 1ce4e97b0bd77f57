"""Aging evolution with tournament selection (Nemotron-Flash, arXiv 2511.18890; Real et al., arXiv 1802.01548).

    population <- known designs plus random ones
    draw S members at random; parent = the one with the lowest loss within the latency budget
    child = parent with one factor mutated, repaired to the limits; scored
    append the child, drop the oldest

Nothing is kept but the history: the population is its last P successes. Members over the budget never get as far as
training, so every member drawn is within it. A candidate that failed is in no population and becomes no parent.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from pydantic import Field, model_validator

from nfsearch.search.candidate import Candidate
from nfsearch.search.history import History
from nfsearch.search.strategies.drafts import DraftStrategy
from nfsearch.search.strategy import Draft, SearchSettings
from nfsearch.space import Unreachable

CHILD_TRIES = 100  # children looked at before a random member takes the place


class AgingSettings(SearchSettings):
    """Of the tournament, and of how children are made."""

    tournament: int = Field(
        default=8, gt=0, description="members drawn at random, of which the one with the lowest loss is parent"
    )
    crossover: float = Field(
        default=0.2, ge=0, le=1, description="share of children of two parents; the others are mutations of one"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> AgingSettings:
        if self.tournament > self.population:
            raise ValueError(f"tournament ({self.tournament}) is larger than population ({self.population})")
        if self.population > self.evaluations:
            raise ValueError(
                f"population ({self.population}) is larger than evaluations ({self.evaluations}): "
                "the search would end before its first child"
            )
        return self


class Aging(DraftStrategy):
    """The paper's search, with a share of crossover children.

    It is steady-state: a child is bred from whatever has finished when a worker becomes free."""

    Settings = AgingSettings
    settings: AgingSettings

    def population(self, history: History) -> Sequence[Candidate]:
        """The last P that succeeded at one fidelity, the most expensive one, oldest first."""
        return history.comparable[-self.settings.population :]

    def tournament(self, rng: random.Random, population: Sequence[Candidate]) -> Candidate:
        """The best of S members drawn without replacement: the one that exceeds the limits least, then the one with the
        lowest first objective (the loss, unless the config says otherwise), then the oldest."""
        drawn = rng.sample(population, min(self.settings.tournament, len(population)))

        def rank(candidate: Candidate) -> tuple[float, float, int]:
            excess = sum(ratio for ratio, _ in self.budgets.limits.excess(candidate.metrics).values())
            return excess, candidate.value(self.problem.objectives[0]), candidate.number

        return min(drawn, key=rank)

    def drafts(self, rng: random.Random, index: int, history: History) -> Iterator[Draft | None]:
        population = self.population(history)
        if index >= self.settings.population and population:
            for _ in range(CHILD_TRIES):
                yield self._child(rng, population)
        yield from self.random_drafts(rng)

    def _child(self, rng: random.Random, population: Sequence[Candidate]) -> Draft | None:
        crossed = rng.random() < self.settings.crossover
        parents = [self.tournament(rng, population) for _ in range(1 + crossed)]
        numbers = tuple(parent.number for parent in parents)
        answers = [parent.proposal.answers for parent in parents]
        try:
            if crossed:
                member, origin = self.space.cross(answers[0], answers[1], rng, fits=self.budgets.fit), "crossover"
            else:
                member, kind = self.space.mutate(answers[0], rng, fits=self.budgets.fit)
                origin = f"mutation:{kind}"
        except Unreachable:
            return None
        return Draft(member.architecture, member.answers, origin, numbers)
