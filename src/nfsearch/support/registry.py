"""Extensions by name: what nfsearch brings and what other packages add, found through entry points.

Each kind of extension has a group, such as `nfsearch.strategies`. An entry is loaded when it is asked for, so that a
package that is broken disturbs nobody who does not name it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar, cast

from nfsearch.support.errors import typed_line
from nfsearch.support.names import nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Registry(Generic[T]):
    """The extensions of one group. `kind` is what one is called in messages: "strategy"."""

    group: str
    kind: str

    @cached_property
    def _entries(self) -> Mapping[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for entry in sorted(entry_points(group=self.group)):
            if entry.name in found and found[entry.name].value != entry.value:
                raise ValueError(
                    f"{self.kind} {entry.name} is defined twice, by {found[entry.name].value} and {entry.value}: "
                    "uninstall one of the two packages"
                )
            found[entry.name] = entry
        if not found:  # nfsearch itself has some in each group, once it is installed as it is now
            raise ValueError(f"no {self.kind} is registered as an entry point of {self.group}: install nfsearch again")
        return found

    @property
    def names(self) -> list[str]:
        """All of them, sorted."""
        return list(self._entries)

    def all(self) -> dict[str, T]:
        """All of them by name, loaded. Raises ValueError for one that cannot be imported."""
        return {name: self.find(name) for name in self.names}

    def find(self, name: str) -> T:
        """The extension of that name. Raises ValueError, with the known names, if there is none, and for one
        that cannot be imported."""
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(self.names)
            raise ValueError(f"unknown {self.kind} {name!r}{nearest(name, self.names)}; known: {known}")
        try:
            return cast(T, entry.load())
        except Exception as error:  # whatever the package of another raises
            raise ValueError(f"{self.kind} {name} ({entry.value}) cannot be imported: {typed_line(error)}") from error
