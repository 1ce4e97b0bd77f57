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

from nfsearch.search.candidate import Candidate
from nfsearch.search.strategy import Draft, Strategy
from nfsearch.space import Unreachable

CHILD_TRIES = 100  # children looked at before a random member takes the place


class Aging(Strategy):
    """The paper's search, with a share of crossover children.

    It is steady-state: a child is bred from whatever has finished when a worker becomes free."""

    def population(self, history: Sequence[Candidate]) -> list[Candidate]:
        """The last P that succeeded, oldest first."""
        return [candidate for candidate in history if candidate.state == "done"][-self.settings.population :]

    def tournament(self, rng: random.Random, population: Sequence[Candidate]) -> Candidate:
        """The member with the lowest loss among S drawn without replacement; the older one where two are equal."""
        drawn = rng.sample(population, min(self.settings.tournament, len(population)))
        return min(drawn, key=lambda candidate: (candidate.score.loss, candidate.number))  # type: ignore[union-attr]

    def drafts(self, rng: random.Random, index: int, history: Sequence[Candidate]) -> Iterator[Draft | None]:
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
