"""How many members an expression has and how long they are, without enumerating them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from nfsearch.space.notation import Choice, Node, Op, Ref, Repeat, Seq


def answers_by_depth(node: Node, where: Mapping[str, Node]) -> Counter[int]:
    """The number of answer sets by the number of layers they lead to: the coefficients of a generating function."""
    match node:
        case Op(_, settings):
            ways = 1
            for _, values in settings:
                ways *= len(values)
            return Counter({1: ways})
        case Ref(name):
            return answers_by_depth(where[name], where)
        case Seq(items):
            return _product([answers_by_depth(item, where) for item in items])
        case Choice(options):
            total: Counter[int] = Counter()
            for option in options:
                total.update(answers_by_depth(option, where))
            return total
        case Repeat(body, low, high, tied):
            once, total, power = answers_by_depth(body, where), Counter(), Counter({0: 1})
            for n in range(high + 1):
                if n >= low:
                    total.update({d * n: ways for d, ways in once.items()} if tied and n else power)
                if not tied:
                    power = _product([power, once])
            return total


def deepest(node: Node, where: Mapping[str, Node]) -> int:
    """The number of layers of the longest member."""
    match node:
        case Op():
            return 1
        case Ref(name):
            return deepest(where[name], where)
        case Repeat(body, _, high):
            return high * deepest(body, where)
        case Choice(options):
            return max(deepest(option, where) for option in options)
        case Seq(items):
            return sum(deepest(item, where) for item in items)


def _product(factors: list[Counter[int]]) -> Counter[int]:
    result = Counter({0: 1})
    for factor in factors:
        grown: Counter[int] = Counter()
        for depth, ways in result.items():
            for more, other in factor.items():
                grown[depth + more] += ways * other
        result = grown
    return result
