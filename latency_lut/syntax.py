"""What a piece of Python says, by its syntax tree: a text that only what it computes decides, and what it refers to.

The text knows no comments, docstrings, layout or annotations, and names of locals only by the order in which they
appear. It is the same in all versions of Python, as `ast.dump` and `ast.unparse` are not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

# How a definition or a module is named in a string: "package.module:name", "package.module".
_NAMED = re.compile(r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+")

_Comprehension = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_UNSAID = {"ctx", "kind", "type_comment", "type_params"}  # fields that say nothing, or that older versions lack


@dataclass(frozen=True)
class Bindings:
    """Names that statements give a meaning to: imports by what they import, `package.module.name`, and the others."""

    names: set[str]
    imports: dict[str, str]


def bindings(nodes: Iterable[ast.AST], package: str) -> Bindings:
    """Those of the scope that `nodes` stand in, of a module in `package`."""
    names: set[str] = set()
    imports: dict[str, str] = {}
    declared: set[str] = set()  # global or nonlocal: bound elsewhere
    todo = list(nodes)
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.update(_imported(node, package))
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
            continue
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            declared.update(node.names)
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names.add(node.id)
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            names.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            names.add(node.rest)
        if isinstance(node, _Comprehension):
            todo += [each.target for each in ast.walk(node) if isinstance(each, ast.NamedExpr)]
        elif not isinstance(node, ast.Lambda):
            todo += ast.iter_child_nodes(node)
    return Bindings(names - declared, imports)


def _imported(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            top = alias.name.partition(".")[0]
            yield (alias.asname, alias.name) if alias.asname else (top, top)
        return
    parents = package.split(".")
    near = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
    module = ".".join(filter(None, (near, node.module)))
    for alias in node.names:
        yield alias.asname or alias.name, f"{module}.{alias.name}"


@dataclass
class Reading:
    """What was read: its text, and what it refers to."""

    text: str
    names: set[str]  # `package.module.name.attribute`, as far as attributes are asked of a name
    attributes: set[str]  # asked of anything else
    inherited: set[str]  # asked of super()


@dataclass(frozen=True)
class Place:
    """Where code stands: the module and its package, what the module imports, and which modules are followed. What is
    followed goes by its last name in the text, wherever it moves and under whatever name it is imported."""

    module: str
    package: str
    imports: Mapping[str, str]
    followed: Callable[[str], bool]

    def called(self, target: str) -> str:
        return target.rpartition(".")[2] if self.followed(target) else target


def read(nodes: Iterable[ast.AST], place: Place) -> Reading:
    """Reads definitions of one module."""
    reader = _Reader(place)
    return Reading(reader.text(list(nodes)), reader.names, reader.attributes, reader.inherited)


class _Reader:
    def __init__(self, place: Place) -> None:
        self._place = place
        # What each name that a function binds stands for, innermost function last: a parameter for itself, a local for
        # a number (or nothing, until it appears), an import for what it imports.
        self._scopes: list[dict[str, str | _Import]] = []
        self._count = 0
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.inherited: set[str] = set()

    def text(self, node: object) -> str:
        match node:
            case list():
                return f"[{','.join(self.text(each) for each in node if not _says_nothing(each))}]"
            case ast.Name() | ast.Attribute():
                return self._reference(node)
            case ast.Constant():
                return self._constant(node.value)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                return self._function(node)
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                return self._comprehension(node)
            case ast.JoinedStr():  # its constant pieces are cut differently by different versions
                return f"f'{''.join(self._piece(each) for each in node.values)}'"
            case ast.AnnAssign() if node.value is not None:
                mark = ":constexpr" if _constexpr(node.annotation) else ""
                return f"Assign(targets=[{self.text(node.target)}{mark}],value={self.text(node.value)})"
            case ast.AnnAssign():
                return f"Field({self.text(node.target)})"
            case ast.AST():
                return f"{type(node).__name__}({','.join(self._fields(node))})"
        return ascii(node)

    def _fields(self, node: ast.AST) -> Iterator[str]:
        names = isinstance(node, (ast.ClassDef, ast.ExceptHandler, ast.MatchAs, ast.MatchStar, ast.MatchMapping))
        for field, value in ast.iter_fields(node):
            if value is not None and value != [] and field not in _UNSAID:
                bound = names and field in ("name", "rest")
                yield f"{field}={self._called(value) if bound else self.text(value)}"

    def _constant(self, value: object) -> str:
        if (
            isinstance(value, str)
            and _NAMED.fullmatch(value)
            and self._place.followed(target := value.replace(":", "."))
        ):
            self.names.add(target)
            return ascii(self._place.called(target))
        return ascii(value)

    def _piece(self, node: ast.AST) -> str:
        return ascii(node.value)[1:-1] if isinstance(node, ast.Constant) else f"{{{self.text(node)}}}"

    def _reference(self, node: ast.Name | ast.Attribute) -> str:
        """A name, or attributes of one; of attributes that are asked of a value, nobody knows whose they are."""
        chain: list[str] = []
        base: ast.AST = node
        while isinstance(base, ast.Attribute):
            chain.insert(0, base.attr)
            base = base.value
        if isinstance(base, ast.Name):
            if (target := self._target(base.id)) is not None:
                self.names.add(".".join((target, *chain)))
            else:
                self.attributes.update(chain)
            return ".".join((self._called(base.id), *chain))
        if isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "super":
            self.inherited.add(chain.pop(0))
            chain.insert(0, "super")
        self.attributes.update(chain)
        return ".".join((self.text(base), *chain))

    def _found(self, name: str) -> dict[str, str | _Import] | None:
        """The innermost function's names, of those that bind this one."""
        return next((scope for scope in reversed(self._scopes) if name in scope), None)

    def _target(self, name: str) -> str | None:
        """What a name refers to outside of functions; None for a parameter or a local."""
        scope = self._found(name)
        if scope is None:
            return f"{self._place.module}.{name}"
        bound = scope[name]
        return bound.target if isinstance(bound, _Import) else None

    def _called(self, name: str) -> str:
        """What stands in the text for a name."""
        scope = self._found(name)
        if scope is None:
            target = self._place.imports.get(name)
            return name if target is None else self._place.called(target)
        bound = scope[name]
        if isinstance(bound, _Import):
            return self._place.called(bound.target)
        if not bound:
            self._count += 1
            bound = scope[name] = f"${self._count}"
        return bound

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> str:
        first = self.text(node.generators[0].iter)  # belongs to the scope around
        bound = bindings([each.target for each in node.generators], self._place.package)
        self._scopes.append(dict.fromkeys(bound.names, ""))
        parts = []
        for i, each in enumerate(node.generators):
            parts += [self.text(each.target), self.text(each.iter) if i else first, self.text(each.ifs)]
            parts.append("async" if each.is_async else "")
        parts += [self.text(getattr(node, field)) for field in ("key", "value", "elt") if hasattr(node, field)]
        self._scopes.pop()
        return f"{type(node).__name__}({','.join(parts)})"

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> str:
        given = node.args
        every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        takes = [f"{each.arg}{':constexpr' if _constexpr(each.annotation) else ''}" for each in every]
        kinds = [len(given.posonlyargs), len(given.args), given.vararg is not None, given.kwarg is not None]
        outside = [self.text(given.defaults), self.text(given.kw_defaults)]
        bound = Bindings(set(), {})
        if not isinstance(node, ast.Lambda):
            outside += [self._called(node.name), self.text(node.decorator_list)]
            bound = bindings(node.body, self._place.package)
        scope: dict[str, str | _Import] = dict.fromkeys(bound.names, "")
        scope |= {name: _Import(target) for name, target in bound.imports.items()}
        scope |= {each.arg: each.arg for each in every}
        self._scopes.append(scope)
        body = self.text(node.body)
        self._scopes.pop()
        return f"{type(node).__name__}({','.join(outside)},{takes},{kinds},{body})"


@dataclass(frozen=True)
class _Import:
    target: str


def _says_nothing(node: object) -> bool:
    """Strings that stand alone, `pass`, imports (what they bring is followed where it is used), declarations."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, (ast.Pass, ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal))


def _constexpr(annotation: ast.AST | None) -> bool:
    """The one annotation that decides something: Triton compiles a kernel anew for each value of such a name."""
    return annotation is not None and ast.unparse(annotation).split(".")[-1] == "constexpr"
