"""The candidates of a search, and what decisions need of them, kept up to date as they finish: a decision costs as much
after ten thousand candidates as after ten."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from typing import overload

from nfsearch.proxies import Fidelity
from nfsearch.search.candidate import Candidate


class History(Sequence[Candidate]):
    """The candidates in the order in which they finished. It only grows."""

    def __init__(self, candidates: Iterable[Candidate] = ()) -> None:
        self._all: list[Candidate] = []
        self._comparable: list[Candidate] = []
        self._digests: set[str] = set()
        self._lowest: dict[tuple[Fidelity, int], tuple[int, list[float]]] = {}
        for candidate in candidates:
            self.append(candidate)

    def append(self, candidate: Candidate) -> None:
        self._all.append(candidate)
        self._digests.add(candidate.proposal.job.digest)
        if candidate.state != "done":
            return
        if self._comparable and self._comparable[0].fidelity < candidate.fidelity:
            self._comparable = []  # a new list: whoever holds the old one keeps it
        if not self._comparable or self._comparable[0].fidelity == candidate.fidelity:
            self._comparable.append(candidate)

    @overload
    def __getitem__(self, place: int) -> Candidate: ...

    @overload
    def __getitem__(self, place: slice) -> list[Candidate]: ...

    def __getitem__(self, place: int | slice) -> Candidate | list[Candidate]:
        return self._all[place]

    def __len__(self) -> int:
        return len(self._all)

    @property
    def comparable(self) -> Sequence[Candidate]:
        """Those that are done at the most expensive fidelity that any is done at, whose losses may be compared."""
        return self._comparable

    def evaluated(self, digest: str) -> bool:
        """Whether a job of this digest has ended."""
        return digest in self._digests

    def lowest_losses(self, fidelity: Fidelity, tokens: int) -> Sequence[float]:
        """The lowest training loss that each candidate of a fidelity had reported when it had seen so many tokens,
        those that stopped before or had reported nothing yet left out; the lowest first."""
        known, losses = self._lowest.setdefault((fidelity, tokens), (0, []))
        for candidate in self._all[known:]:
            found = candidate.evaluation
            if found is None or not found.curve or candidate.fidelity != fidelity:
                continue
            if found.curve[0][0] <= tokens <= found.curve[-1][0]:
                insort(losses, min(loss for seen, loss in found.curve if seen <= tokens))
        self._lowest[fidelity, tokens] = len(self._all), losses
        return losses
