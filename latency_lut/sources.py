"""Which code something runs, found in the sources of packages without importing them, and its digest.

From some roots every name that a definition uses is followed to the definition that it refers to, in its module or in
those that it imports. Of a class that a root names only those members count that are used; any other is taken whole.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from nfsearch.latency_lut.syntax import Place, Reading, bindings, read

_HEADER = "class"  # what stands before a class's members; a keyword, so no member's name


class _Statements:
    """Statements by the names that they bind; under "" those that bind none, which count with every other."""

    def __init__(self, body: Iterable[ast.stmt], package: str) -> None:
        self.imports: dict[str, str] = {}
        self.by_name: dict[str, list[ast.stmt]] = {"": []}
        for statement in body:
            found = bindings([statement], package)
            self.imports |= found.imports
            for name in found.names or ({""} if not found.imports else ()):
                self.by_name.setdefault(name, []).append(statement)


class _Module:
    def __init__(self, name: str, path: Path, sources: Sources) -> None:
        self.prefix = f"{name}:"
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        self.defined = _Statements(ast.parse(path.read_text(encoding="utf-8")).body, package)
        self._place = Place(name, package, self.defined.imports, lambda target: sources.follows(target))
        self._classes: dict[str, _Class] = {}
        self._readings: dict[str, Reading] = {}

    def reading(self, name: str) -> Reading:
        """What the statements that bind a name say, or with "" those that bind none."""
        if name not in self._readings:
            self._readings[name] = self.read(self.defined.by_name[name])
        return self._readings[name]

    def read(self, nodes: Iterable[ast.AST]) -> Reading:
        return read(nodes, self._place)

    def find_class(self, name: str) -> _Class | None:
        statements = self.defined.by_name.get(name, [])
        if name not in self._classes and len(statements) == 1 and isinstance(statements[0], ast.ClassDef):
            self._classes[name] = _Class(self, statements[0], self._place.package)
        return self._classes.get(name)


class _Class:
    def __init__(self, module: _Module, node: ast.ClassDef, package: str) -> None:
        self.module, self.prefix, self._node = module, f"{module.prefix}{node.name}.", node
        self.members = _Statements(node.body, package)
        self._readings: dict[str, Reading] = {}

    @cached_property
    def bases(self) -> list[str]:
        named = [base for base in self._node.bases if isinstance(base, (ast.Name, ast.Attribute))]
        return [name for base in named for name in self.module.read([base]).names]

    def reading(self, name: str) -> Reading:
        """What a member says; or the header: decorators, bases and keywords. Of bases that are classes only those
        members count that are used."""
        if name not in self._readings:
            header = [*self._node.decorator_list, *self._node.bases, *self._node.keywords]
            found = self.module.read(header if name == _HEADER else self.members.by_name[name])
            if name == _HEADER:
                found.names.difference_update(self.bases)
            self._readings[name] = found
        return self._readings[name]


class _Owner:
    """A class that a root names, with the classes that it inherits from, the nearest first."""

    def __init__(self, lineage: list[_Class]) -> None:
        self.lineage = lineage

    def find(self, member: str, after: _Class | None = None) -> _Class | None:
        """The class that defines a member; with `after`, what super() finds there."""
        first = self.lineage.index(after) + 1 if after else 0
        return next((each for each in self.lineage[first:] if member in each.members.by_name), None)


class _Step(NamedTuple):
    """A definition to be read, for the sake of a class that a root names (or of none)."""

    place: _Module | _Class
    name: str
    owner: _Owner | None


class Sources:
    """The sources of some packages. What lies elsewhere, and modules and definitions that are `ignored`, are not
    followed."""

    def __init__(self, packages: Mapping[str, Path], ignored: Collection[str] = ()) -> None:
        """`packages`: by their names, the folder or (of a package that is one module) the file."""
        self._packages, self._ignored = dict(packages), frozenset(ignored)
        self._modules: dict[str, _Module | None] = {}
        self._owners: dict[str, _Owner] = {}

    def follows(self, name: str) -> bool:
        """Whether a module or something in it belongs to these packages."""
        return any(f"{name}.".startswith(f"{package}.") for package in self._packages)

    def digest(self, roots: Iterable[str]) -> str:
        """Twelve hex digits over the code of all that these roots run: `package.module:name` is a definition with all
        of it, `package.module:Class.member` that member alone. Raises ValueError for a root that is not there."""
        texts = sorted({f"{step.name}\0{step.place.reading(step.name).text}" for step in self._closure(roots)})
        return hashlib.blake2b("\0".join(texts).encode(), digest_size=6).hexdigest()

    def definitions(self, roots: Iterable[str]) -> set[str]:
        """What these roots run, written as roots are."""
        return {f"{step.place.prefix}{step.name}" for step in self._closure(roots)}

    def _closure(self, roots: Iterable[str]) -> list[_Step]:
        todo = [step for root in roots for step in self._root(root)]
        seen = dict.fromkeys(todo)
        while todo:
            for step in self._referred(todo.pop()):
                if step not in seen:
                    seen[step] = None
                    todo.append(step)
        return list(seen)

    def _root(self, root: str) -> list[_Step]:
        module, _, name = root.partition(":")
        kind, _, member = name.partition(".")
        steps = list(self._resolve(f"{module}.{kind}", None))
        if member:
            found = [step.place.find_class(step.name) for step in steps if isinstance(step.place, _Module)]
            owners = [self._owner(each) for each in found if each]
            steps = [step for owner in owners for step in _member(owner, member)]
        if not steps:
            raise ValueError(f"there is no {root}")
        return steps

    def _owner(self, kind: _Class) -> _Owner:
        if kind.prefix not in self._owners:
            self._owners[kind.prefix] = _Owner(list(dict.fromkeys(self._lineage(kind))))
        return self._owners[kind.prefix]

    def _lineage(self, kind: _Class) -> Iterator[_Class]:
        yield kind
        for base in kind.bases:
            for step in self._resolve(base, None):
                if isinstance(step.place, _Module) and (found := step.place.find_class(step.name)):
                    yield from self._lineage(found)

    def _referred(self, step: _Step) -> Iterator[_Step]:
        reading, owner = step.place.reading(step.name), step.owner
        for name in reading.names:
            yield from self._resolve(name, owner)
        if step.name:
            yield from _loose(step.place, owner)
        if owner is None:
            return
        for name in reading.attributes:  # of whatever value: it may be the owner's own
            yield from _member(owner, name)
        if isinstance(step.place, _Class):
            for name in reading.inherited:
                yield from _member(owner, name, step.place)

    def _resolve(self, target: str, owner: _Owner | None) -> Iterator[_Step]:
        """The definitions that `package.module.name` and what follows refers to; all of a module that is named alone,
        as it may be asked for any."""
        parts = target.split(".")
        for count in range(len(parts), 0, -1):
            if module := self._module(".".join(parts[:count])):
                break
        else:
            return
        if count == len(parts):
            yield from (_Step(module, name, owner) for name in module.defined.by_name)
            return
        name = parts[count]
        if ".".join(parts[: count + 1]) in self._ignored:
            return
        if name in module.defined.by_name:
            yield _Step(module, name, owner)
        if name in module.defined.imports:
            yield from self._resolve(".".join((module.defined.imports[name], *parts[count + 1 :])), owner)

    def _module(self, name: str) -> _Module | None:
        if name not in self._modules:
            path = self._path(name)
            self._modules[name] = _Module(name, path, self) if path else None
        return self._modules[name]

    def _path(self, name: str) -> Path | None:
        package = next((each for each in self._packages if f"{name}.".startswith(f"{each}.")), None)
        if package is None or name in self._ignored:
            return None
        place = self._packages[package]
        if place.is_file():
            return place if name == package else None
        inner = place.joinpath(*name.split(".")[len(package.split(".")) :])
        paths = (inner / "__init__.py", *([inner.with_name(f"{inner.name}.py")] if name != package else []))
        return next((path for path in paths if path.is_file()), None)


def _loose(place: _Module | _Class, owner: _Owner | None) -> Iterator[_Step]:
    """What counts with every definition of a module or a class."""
    yield _Step(place, "", owner)
    if isinstance(place, _Class):
        yield _Step(place, _HEADER, owner)
        yield _Step(place.module, "", owner)


def _member(owner: _Owner, name: str, after: _Class | None = None) -> Iterator[_Step]:
    if found := owner.find(name, after):
        yield _Step(found, name, owner)
