"""What every strategy does: seeded drafts, no design twice, none over the budget, and a clear end."""

from __future__ import annotations

import logging
import random
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nfsearch.search.budgets import Budgets, Costs
from nfsearch.search.candidate import Candidate, Proposal
from nfsearch.search.settings import KnownDesign, SearchSettings
from nfsearch.space import Architecture, SearchSpace, Unreachable
from nfsearch.space.notation import parse_layers

RANDOM_TRIES = 2000  # random members looked at before the space counts as exhausted, or a budget as unreachable
SAMPLE_MISSES = 10  # samples in a row that found no member within the limits before there counts as being none
SEEN, BROKEN = "evaluated before", "outside the space's limits"

logger = logging.getLogger(__name__)


class Exhausted(Exception):
    """No design was found that has not been evaluated. The search is over."""


@dataclass(frozen=True)
class Draft:
    """A design that may become a proposal."""

    architecture: Architecture
    answers: Mapping[str, Any]
    origin: str
    parents: tuple[int, ...] = ()


class Strategy(ABC):
    """Proposes designs. What it proposes is a function of (seed, index, history) and of what is running now.

    Raises ValueError for a known design that is no member of the space."""

    def __init__(self, space: SearchSpace, settings: SearchSettings, budgets: Budgets) -> None:
        self.space, self.settings, self.budgets = space, settings, budgets
        self.known: list[Draft] = []
        for design in settings.seeds_known:
            self._add_known(design)

    @abstractmethod
    def drafts(self, rng: random.Random, index: int, history: Sequence[Candidate]) -> Iterator[Draft | None]:
        """Designs to consider, best first; ends when there is no use in more. None: one that broke a limit."""

    def propose(self, index: int, history: Sequence[Candidate], running: Collection[str] = ()) -> Proposal:
        """The proposal number `index`, given the finished candidates in the order they finished and the digests of
        the running ones.

        Raises `Exhausted` where nothing new is found, and ValueError where no member keeps the budgets."""
        rng = random.Random(f"{self.settings.seed}/{index}")  # of text: the same in every process
        seen = {candidate.proposal.architecture.digest for candidate in history}.union(running)
        refused: Counter[str] = Counter()
        closest: tuple[float, str] | None = None
        for draft in self._all_drafts(rng, index, history):
            if draft is None:
                refused[BROKEN] += 1
                continue
            if draft.architecture.digest in seen:
                refused[SEEN] += 1
                continue
            costs = self.budgets.estimate(draft.architecture)
            over = self.budgets.excess(costs)
            if not over:
                return self._proposal(index, draft, costs, refused)
            refused[f"over the limit on {' and '.join(over)}"] += 1
            ratio, words = max((ratio, f"{name}: {words}") for name, (ratio, words) in over.items())
            if closest is None or ratio < closest[0]:
                closest = ratio, f"{draft.architecture} ({words})"
        raise self._nothing(refused, closest, first=not seen)

    def _all_drafts(self, rng: random.Random, index: int, history: Sequence[Candidate]) -> Iterator[Draft | None]:
        if index < len(self.known):
            yield self.known[index]
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

    def _proposal(self, index: int, draft: Draft, costs: Costs, refused: Mapping[str, int]) -> Proposal:
        # A generation is a label: as many children as the population has members.
        generation = index // self.settings.population
        return Proposal(
            index, draft.architecture, draft.answers, draft.origin, generation, draft.parents, costs, dict(refused)
        )

    def _nothing(self, refused: Counter[str], closest: tuple[float, str] | None, first: bool) -> Exception:
        reasons = ", ".join(f"{reason} {count} times" for reason, count in refused.most_common())
        if not first or closest is None:
            return Exhausted(
                f"no new design in {refused.total()} tries ({reasons}); the space has {self.space.count()} answer sets"
            )
        return ValueError(
            f"no member of the space keeps the limits: {refused.total()} tried ({reasons}); "
            f"the closest is {closest[1]}. Raise the limit, or let the space have smaller members"
        )

    def _add_known(self, design: str | KnownDesign) -> None:
        text = design if isinstance(design, str) else design.layers
        widths = sorted(self.space.widths, reverse=True) if isinstance(design, str) else [design.width]
        layers = parse_layers(text)
        members = []
        for width in widths:
            architecture = Architecture(
                width, layers, self.space.vocab, self.space.meta_tokens[0], self.space.head_norm
            )
            answers = self.space.locate(architecture)
            if answers is not None:
                members.append(Draft(architecture, answers, "known"))
        if not members:
            raise ValueError(
                f"seeds_known: {text!r} at width {' or '.join(map(str, widths))} is no member of the space, "
                "or breaks its limits"
            )
        for member in members:
            if self.budgets.fit(member.architecture):
                self.known.append(member)
                return
        over = self.budgets.excess(self.budgets.estimate(members[-1].architecture))
        words = ", ".join(f"{name}: {words}" for name, (_, words) in over.items())
        logger.warning("known design %s is over the limits and left out (%s)", members[-1].architecture, words)
