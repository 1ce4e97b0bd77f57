"""How many members an expression has, how long they are and of which operators, without enumerating them.

What a name stands for is counted once, however often it is used: names of names can double in each line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from functools import cache

from nfsearch.space.notation import Choice, Node, Op, Ref, Repeat, Seq, children


def answers_by_depth(node: Node, where: Mapping[str, Node]) -> Counter[int]:
    """The number of answer sets by the number of layers they lead to: the coefficients of a generating function."""

    @cache
    def of_name(name: str) -> Counter[int]:
        return of(where[name])

    def of(node: Node) -> Counter[int]:
        match node:
            case Op():
                return Counter({1: node.forms})
            case Ref(name):
                return of_name(name)
            case Seq(items):
                return _product([of(item) for item in items])
            case Choice(options):
                total: Counter[int] = Counter()
                for option in options:
                    total.update(of(option))
                return total
            case Repeat(body, low, high, tied):
                return _repeated(of(body), low, high, tied)

    return of(node)


def operators_in(node: Node, where: Mapping[str, Node]) -> set[Op]:
    """Those in an expression, what its names stand for included."""
    found: set[Op] = set()
    todo, names = [node], set[str]()
    while todo:
        match todo.pop():
            case Op() as op:
                found.add(op)
            case Ref(name):
                if name not in names:
                    names.add(name)
                    todo.append(where[name])
            case other:
                todo += children(other)
    return found


def deepest(node: Node, where: Mapping[str, Node], empty: int = 0) -> int:
    """The number of layers of the longest member; a part that is `()` counts as so many."""

    @cache
    def of_name(name: str) -> int:
        return of(where[name])

    def of(node: Node) -> int:
        match node:
            case Op():
                return 1
            case Ref(name):
                return of_name(name)
            case Repeat(body, _, high):
                return high * of(body)
            case Choice(options):
                return max(map(of, options))
            case Seq(items):
                return sum(map(of, items)) if items else empty

    return of(node)


def in_full(count: int) -> str:
    """With commas. Python itself writes no more than 4,300 digits."""
    return f"{Decimal(count):,}"


def _repeated(once: Counter[int], low: int, high: int, tied: bool) -> Counter[int]:
    total: Counter[int] = Counter()
    power = Counter({0: 1})
    for n in range(high + 1):
        if n >= low:
            total.update({depth * n: ways for depth, ways in once.items()} if tied and n else power)
        if not tied:
            power = _product([power, once])
    return total


def _product(factors: list[Counter[int]]) -> Counter[int]:
    result = Counter({0: 1})
    for factor in factors:
        grown: Counter[int] = Counter()
        for depth, ways in result.items():
            for more, other in factor.items():
                grown[depth + more] += ways * other
        result = grown
    return result
