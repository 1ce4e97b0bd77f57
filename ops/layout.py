"""The rows of a projection: what stands where, said once for the plain forms and the kernels."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Parts of the rows of a matrix, one after the other: (name, size) of each. A group of neighbours is written
    "q|k|v"."""

    parts: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, **sizes: int) -> Layout:
        return cls(tuple(sizes.items()))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all parts."""
        return tuple(name for name, _ in self.parts)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of all parts."""
        return tuple(size for _, size in self.parts)

    @property
    def total(self) -> int:
        """How many rows there are."""
        return sum(self.sizes)

    def size(self, group: str) -> int:
        """How many rows a part or a group has."""
        sizes = dict(self.parts)
        return sum(sizes[name] for name in group.split("|"))

    def start(self, group: str) -> int:
        """The first row of a part or a group."""
        return sum(self.sizes[: self.names.index(group.split("|")[0])])

    def split(self, x: Tensor, *groups: str) -> tuple[Tensor, ...]:
        """x [..., total] cut into all parts, or into these groups, which are all parts in their order. What x has after
        them is left out."""
        sizes = [self.size(group) for group in groups] if groups else list(self.sizes)
        return x.split([*sizes, x.shape[-1] - self.total], dim=-1)[: len(sizes)]
