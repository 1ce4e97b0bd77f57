"""What a figure was measured with. Figures of different fidelity are not compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from nfsearch.proxies.cache import digest


@dataclass(frozen=True)
class Fidelity:
    """How much training, of what kind, on what: equal fidelity, comparable losses.

    Fidelities are ordered by what they cost: `a < b` says that a candidate costs less at a than at b.

    Raises ValueError for numbers that none has.
    """

    tokens: int  # that a candidate is trained on
    sequence: int
    batch: int  # sequences in a step
    recipe: str  # everything else that a loss depends on, in words
    data: str  # the digest of the tokens it is trained and measured on
    twin: int = 1  # how many times narrower the model is that stands for the candidate

    def __post_init__(self) -> None:
        for name, least in (("tokens", 0), ("sequence", 0), ("batch", 0), ("twin", 1)):
            if not least <= (value := getattr(self, name)) < 2**63:
                raise ValueError(f"{name}: expected a whole number from {least} on, found {value!r:.40}")

    @cached_property
    def digest(self) -> str:
        """A short name, the same in every process."""
        return digest(asdict(self))

    @property
    def _order(self) -> tuple[float, str]:
        return self.tokens / self.twin**2, self.digest  # a matrix of a twin is as much smaller

    def __lt__(self, other: Fidelity) -> bool:
        return self._order < other._order

    def __str__(self) -> str:
        twin = f", a twin narrowed {self.twin} times" if self.twin > 1 else ""
        return f"{self.tokens} tokens, sequence {self.sequence}, batch {self.batch}, {self.recipe}{twin}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Fidelity:
        return cls(**fields)
