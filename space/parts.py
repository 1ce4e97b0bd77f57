"""Parts of a space: its members that have none but allowed layers."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any

from nfsearch.space.family import Family
from nfsearch.space.layer import Layer
from nfsearch.space.notation import Choice, Node, Op, Ref, Repeat, Seq


class Part:
    """The part of a space whose layers are all allowed."""

    def __init__(self, allowed: Callable[[Layer], bool], where: Mapping[str, Node]) -> None:
        self.allowed, self.where = cache(allowed), where
        self._known: dict[int, bool] = {}  # by the node's id: the space keeps its nodes

    def forms(self, op: Op) -> list[dict[str, Any]]:
        """The settings of an operator with which it is allowed."""
        names = [name for name, _ in op.settings]
        settings = (dict(zip(names, values, strict=True)) for values in product(*(values for _, values in op.settings)))
        return [form for form in settings if self.allowed(Layer(op.name, tuple(form.items())))]

    def has(self, node: Node) -> bool:
        """Whether some member of an expression has none but allowed layers."""
        if id(node) not in self._known:
            self._known[id(node)] = self._has(node)
        return self._known[id(node)]

    def _has(self, node: Node) -> bool:
        match node:
            case Op():
                return bool(self.forms(node))
            case Ref(name):
                return self.has(self.where[name])
            case Seq(items):
                return all(map(self.has, items))
            case Choice(options):
                return any(map(self.has, options))
            case Repeat(body, low):
                return low == 0 or self.has(body)

    def values(self, op: Op, chosen: Mapping[str, Any], key: str) -> list[int]:
        """The indices of the values that a setting can have after these were chosen."""
        forms = [form for form in self.forms(op) if all(form[name] == value for name, value in chosen.items())]
        return [i for i, value in enumerate(dict(op.settings)[key]) if any(form[key] == value for form in forms)]

    def options(self, options: Sequence[Node]) -> list[int]:
        """The indices of the options that have a member."""
        return [i for i, option in enumerate(options) if self.has(option)]

    def counts(self, node: Repeat) -> list[int] | None:
        """The indices of the counts that are possible; None for all of them."""
        return None if self.has(node.body) else [0]

    def of(self, node: Node) -> Node:
        """An expression that has some such member, without the options and settings that none of these has."""
        match node:
            case Op(name, settings):
                forms = self.forms(node)
                left = (
                    (key, tuple(v for v in values if any(form[key] == v for form in forms))) for key, values in settings
                )
                default = Layer(name).values
                return Op(name, tuple((key, values) for key, values in left if values != (default.get(key, ...),)))
            case Seq(items):
                return Seq(tuple(map(self.of, items)))
            case Choice(options):
                kept = tuple(dict.fromkeys(self.of(option) for option in options if self.has(option)))
                return kept[0] if len(kept) == 1 else Choice(kept)
            case Repeat(body, low, high, tied):
                return Repeat(self.of(body), low, high, tied) if self.has(body) else Seq(())
        return node


def agreeing(
    family: Family, layers: Iterable[Layer], width: int, rng: random.Random, after: Collection[Layer] = ()
) -> Callable[[Layer], bool]:
    """Which layers a model of the family can have, once these have decided the numbers that all layers agree on: one
    after the other in random order, those of `after` last."""
    decided: dict[str, Any] = {}

    def agrees(layer: Layer) -> bool:
        if family.layer_refusal(layer, width):
            return False
        return all(decided.get(name, value) == value for name, value in family.numbers(layer, width).items())

    order = list(dict.fromkeys(layers))
    rng.shuffle(order)
    for layer in sorted(order, key=lambda layer: layer in after):
        if agrees(layer):
            decided |= family.numbers(layer, width)
    return agrees
