"""The notation: one text form for architectures and for spaces of architectures.

    expression := sequence ("|" sequence)*                        a choice
    sequence   := item*                                           one after the other
    item       := unit [ "{" n [".." m] "}" | "*{" n [".." m] "}" ]
    unit       := "(" expression ")" | word [ "[" setting ("," setting)* "]" ]
    setting    := word "=" value ("|" value)*

`X{1..4}` repeats the same X (chosen once), `X*{1..4}` chooses every copy anew. A word is an operator or the name of
another expression. `()` is nothing. An architecture is an expression with nothing left open.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import product

from nfsearch.space.folding import folded
from nfsearch.space.layer import Layer, print_operator
from nfsearch.space.operators import OperatorSpec, Setting, Value, find_operator, operator_names
from nfsearch.support.names import nearest

MAX_BRACKETS = 50  # in one another
MAX_NESTING = 150  # expressions in one another, named ones followed
MAX_LAYERS = 2000  # of the longest member


class NotationError(ValueError):
    """Text that is not in the notation. The message quotes the text with a caret under the column."""

    def __init__(self, message: str, text: str, column: int) -> None:
        start = max(0, column - 60)
        quoted = text[start : column + 40].replace("\n", " ").replace("\t", " ")
        super().__init__(f"column {column + 1}: {message}\n  {quoted}\n  {' ' * (column - start)}^")
        self.column = column


# --- the syntax tree -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Op:
    """An operator; each listed setting has one value (fixed) or several (open)."""

    name: str
    settings: tuple[tuple[str, tuple[Value, ...]], ...] = ()

    @property
    def forms(self) -> int:
        """How many layers this can become."""
        return math.prod(len(options) for _, options in self.settings)

    def layers(self) -> Iterator[Layer]:
        """Every layer this can become."""
        for values in product(*(options for _, options in self.settings)):
            yield Layer(self.name, tuple(zip((name for name, _ in self.settings), values, strict=True)))


@dataclass(frozen=True)
class Ref:
    """The name of another expression."""

    name: str


@dataclass(frozen=True)
class Seq:
    items: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeat:
    """`low` to `high` times the body: the same each time if tied, else each chosen anew."""

    body: Node
    low: int
    high: int
    tied: bool = True


Node = Op | Ref | Seq | Choice | Repeat

# --- reading ---------------------------------------------------------------------------------------------------------

_TOKEN = re.compile(
    r"\s*(?:(?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_][\w:]*)|(?P<symbol>\.\.|[()\[\]{}|,=*])|(?P<end>$))"
)
_CONSTANTS: Mapping[str, Value] = {"none": None, "true": True, "false": False}


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    column: int

    def __str__(self) -> str:
        if not self.text:
            return "the end"
        return f"'{self.text}'" if len(self.text) <= 40 else f"'{self.text[:40]}...'"


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    while True:
        match = _TOKEN.match(text, at)
        if match is None:
            column = at + len(text[at:]) - len(text[at:].lstrip())
            raise NotationError(f"unexpected character {text[column]!r}", text, column)
        kind = match.lastgroup or "end"
        found.append(_Token(kind, match.group(kind), match.start(kind)))
        if kind == "end":
            return found
        at = match.end()


class _Parser:
    def __init__(self, text: str, names: Collection[str]) -> None:
        self.text, self.names = text, names
        self.tokens, self.at, self.depth = _tokens(text), 0, 0

    @property
    def here(self) -> _Token:
        return self.tokens[self.at]

    def fail(self, message: str, token: _Token | None = None) -> NotationError:
        return NotationError(message, self.text, (token or self.here).column)

    def take(self, symbol: str) -> bool:
        if self.here.kind == "symbol" and self.here.text == symbol:
            self.at += 1
            return True
        return False

    def expect(self, symbol: str, also: str = "") -> None:
        if not self.take(symbol):
            raise self.fail(f"expected '{symbol}'{also}, found {self.here}")

    def whole(self) -> Node:
        node = self.expression()
        if self.here.kind != "end":
            raise self.fail(f"expected an operator, '(', '|' or the end, found {self.here}")
        return node

    def expression(self) -> Node:
        options, starts = [], []
        while True:
            starts.append(self.here)
            options.append(self.sequence())
            if (last := options[-1]) is not None and last in options[:-1]:
                raise self.fail(f"'{print_node(last)}' is listed twice in this choice", starts[-1])
            if not self.take("|"):
                break
        for option, start in zip(options, starts, strict=True):
            if option is None:
                if len(options) > 1 or self.depth == 0:
                    raise self.fail(f"expected an operator or '(', found {start}", start)
                return Seq(())
        nodes = tuple(option for option in options if option is not None)
        return nodes[0] if len(nodes) == 1 else Choice(nodes)

    def sequence(self) -> Node | None:
        items = []
        while self.here.kind == "word" or (self.here.kind == "symbol" and self.here.text == "("):
            items.append(self.item())
        if not items:
            return None
        return items[0] if len(items) == 1 else Seq(tuple(items))

    def item(self) -> Node:
        unit = self.unit()
        tied = not self.take("*")
        if not self.take("{"):
            if not tied:
                raise self.fail(f"expected '{{' after '*', found {self.here}")
            return unit
        start = self.here
        low = self.whole_number("a number of repeats")
        high = self.whole_number("a number of repeats") if self.take("..") else low
        if low > high:
            raise self.fail(f"{{{low}..{high}}}: the first number is larger than the second", start)
        if high < 1:
            raise self.fail("nothing is repeated zero times; leave it out", start)
        self.expect("}", " or '..'" if low == high else "")
        return unit if low == high == 1 else Repeat(unit, low, high, tied)

    def whole_number(self, what: str) -> int:
        token = self.here
        if token.kind != "number" or not token.text.isdigit():
            raise self.fail(f"expected {what}, found {token}")
        if len(token.text) > 6:
            raise self.fail(f"{what} is too large: a model has at most {MAX_LAYERS} layers")
        self.at += 1
        return int(token.text)

    def unit(self) -> Node:
        start = self.here
        if self.take("("):
            self.depth += 1
            if self.depth > MAX_BRACKETS:
                raise self.fail(f"more than {MAX_BRACKETS} brackets in brackets", start)
            node = self.expression()
            if not self.take(")"):
                raise self.fail(f"expected ')' for the '(' at column {start.column + 1}, found {self.here}")
            self.depth -= 1
            return node
        self.at += 1
        if start.text in self.names:
            if self.here.text == "[":
                raise self.fail(f"'{start.text}' names an expression; only operators take settings")
            return Ref(start.text)
        spec = find_operator(start.text)
        if spec is None:
            known = [*self.names, *operator_names()]
            hint = nearest(start.text, known) or f"; known: {', '.join(known)}"
            raise self.fail(f"'{start.text}' is neither an operator nor a defined name{hint}", start)
        return Op(spec.name, self.settings(spec) if self.take("[") else ())

    def settings(self, spec: OperatorSpec) -> tuple[tuple[str, tuple[Value, ...]], ...]:
        found: dict[str, tuple[Value, ...]] = {}
        while True:
            name = self.here
            if name.kind != "word":
                known = f" ({', '.join(spec.settings)})" if spec.settings else ""
                raise self.fail(f"expected a setting of {spec.name}{known}, found {name}")
            setting = spec.setting(name.text)
            if setting is None:
                hint = nearest(name.text, list(spec.settings)) or f"; it has {', '.join(spec.settings)}"
                raise self.fail(f"{spec.name} has no setting '{name.text}'{hint}")
            if name.text in found:
                raise self.fail(f"'{name.text}' is set twice")
            self.at += 1
            self.expect("=")
            label = f"{spec.name}[{name.text}]"
            values = [self.value(setting, label)]
            while self.take("|"):
                token = self.here
                values.append(self.value(setting, label))
                if values[-1] in values[:-1]:
                    raise self.fail(f"'{token.text}' is listed twice in this choice", token)
            if values != [setting.default]:
                found[name.text] = tuple(values)
            if not self.take(","):
                break
        self.expect("]", " or ','")
        return tuple(sorted(found.items()))

    def value(self, setting: Setting, label: str) -> Value:
        token = self.here
        value: Value = token.text
        if token.kind == "number":
            value = float(token.text)
            if re.fullmatch(r"-?\d+", token.text) and math.isfinite(value):  # int refuses thousands of digits
                value = int(token.text)
        elif token.kind == "word":
            value = _CONSTANTS.get(token.text, token.text)
        if token.kind not in ("number", "word") or not setting.accepts(value):
            raise self.fail(f"{label}: expected {setting.expected()}, found {token}")
        self.at += 1
        return setting.normal(value)


def parse(text: str, names: Collection[str] = ()) -> Node:
    """The tree of an expression; `names` are the words that stand for other expressions. Raises `NotationError`."""
    return _Parser(text, names).whole()


def parse_definitions(where: Mapping[str, str]) -> dict[str, Node]:
    """Named expressions. Raises ValueError for a name that is taken or is defined through itself."""
    parsed: dict[str, Node] = {}
    for name, text in where.items():
        if find_operator(name) is not None:
            raise ValueError(f"'{name}' is an operator; give the expression another name")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"{name!r} is no name: letters, digits and '_' are")
        try:
            parsed[name] = parse(text, where.keys())
        except NotationError as error:
            raise ValueError(f"in '{name}': {error}") from None
    require_shallow(Seq(()), parsed)
    return parsed


def require_shallow(node: Node, where: Mapping[str, Node]) -> None:
    """Raises ValueError for a name that is defined through itself, and where it or an expression is nested so deep that
    nobody could follow it, Python's stack included."""
    depths: dict[str, int] = {}
    for name in _inner_first(where):
        depths[name] = _depth(where[name], depths)
        if depths[name] > MAX_NESTING:
            raise ValueError(f"'{name}' has more than {MAX_NESTING} expressions in one another")
    if _depth(node, depths) > MAX_NESTING:
        raise ValueError(f"there are more than {MAX_NESTING} expressions in one another")


def _inner_first(where: Mapping[str, Node]) -> list[str]:
    """The names, each after those that it is defined by. Raises ValueError for a circle of them."""
    used = {name: sorted(_names_in(node)) for name, node in where.items()}
    try:
        return list(TopologicalSorter(used).static_order())
    except CycleError as error:
        circle = error.args[1][::-1]
        start = circle.index(next(name for name in where if name in circle))
        circle = [*circle[start:-1], *circle[: start + 1]]
        raise ValueError(f"'{circle[0]}' is defined through itself: {' -> '.join(circle)}") from None


def _names_in(node: Node) -> set[str]:
    if isinstance(node, Ref):
        return {node.name}
    return set().union(*(_names_in(child) for child in children(node)))


def _depth(node: Node, names: Mapping[str, int]) -> int:
    if isinstance(node, Ref):
        return 1 + names[node.name]
    return 1 + max((_depth(child, names) for child in children(node)), default=0)


def children(node: Node) -> tuple[Node, ...]:
    """The expressions directly inside one."""
    match node:
        case Seq(items):
            return items
        case Choice(options):
            return options
        case Repeat(body):
            return (body,)
    return ()


def parse_layers(text: str) -> tuple[Layer, ...]:
    """The layers of an architecture. Raises `NotationError` if the text leaves anything open."""
    return tuple(_expand(parse(text), text))


def _expand(node: Node, text: str) -> list[Layer]:
    match node:
        case Op():
            if node.forms > 1:
                raise NotationError(f"{print_node(node)} leaves a setting open; an architecture does not", text, 0)
            return list(node.layers())
        case Seq(items):
            found = [layer for item in items for layer in _expand(item, text)]
        case Repeat(body, low, high) if low == high:
            found = _expand(body, text) * min(low, MAX_LAYERS + 1)
        case _:
            raise NotationError(f"{print_node(node)} leaves a choice open; an architecture does not", text, 0)
    if len(found) > MAX_LAYERS:
        raise NotationError(f"more than {MAX_LAYERS} layers", text, 0)
    return found


# --- printing --------------------------------------------------------------------------------------------------------


def print_node(node: Node) -> str:
    """The text of an expression; `parse` gives the same tree back."""
    match node:
        case Op(name, settings):
            return print_operator(name, settings)
        case Ref(name):
            return name
        case Seq(items):
            return " ".join(_bracketed(item, Seq, Choice) for item in items) or "()"
        case Choice(options):
            return " | ".join(_bracketed(option, Choice) for option in options)
        case Repeat(body, low, high, tied):
            count = str(low) if low == high else f"{low}..{high}"
            return f"{_bracketed(body, Seq, Choice, Repeat)}{'' if tied else '*'}{{{count}}}"


def _bracketed(node: Node, *kinds: type) -> str:
    text = print_node(node)
    return f"({text})" if isinstance(node, kinds) and text != "()" else text


def print_layers(layers: tuple[Layer, ...]) -> str:
    """The shortest text for a sequence of layers, repeats folded."""
    return folded(list(map(str, layers))) or "()"
