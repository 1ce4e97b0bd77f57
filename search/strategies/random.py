"""Uniform answers: the baseline that evolution has to beat."""

from __future__ import annotations

import random
from collections.abc import Iterator

from nfsearch.search.history import History
from nfsearch.search.strategies.drafts import DraftStrategy
from nfsearch.search.strategy import Draft


class Random(DraftStrategy):
    """Every question of the space answered uniformly, after the known designs."""

    def drafts(self, rng: random.Random, index: int, history: History) -> Iterator[Draft | None]:
        yield from self.random_drafts(rng)
