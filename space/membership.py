"""Which answers lead to an architecture? Matching layers against an expression, as a parser would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nfsearch.space.layer import Layer
from nfsearch.space.notation import Choice, Node, Op, Ref, Repeat, Seq, print_node

Ends = dict[int, dict[str, Any]]  # where a match can end -> answers that end it there
CountedEnds = dict[int, tuple[int, dict[str, Any]]]  # the same, with the number of repeats


class Matcher:
    """Matches layers against an expression: from each start, every end it can reach and answers that reach it."""

    def __init__(self, where: Mapping[str, Node], layers: tuple[Layer, ...]) -> None:
        self.where, self.layers = where, layers
        self.known: dict[tuple[str, int], Ends] = {}

    def match(self, node: Node, path: str, start: int) -> Ends:
        key = (f"{type(node).__name__} {path}", start)
        if key not in self.known:
            self.known[key] = self._match(node, path, start)
        return self.known[key]

    def _match(self, node: Node, path: str, start: int) -> Ends:
        match node:
            case Op():
                return self._operator(node, path, start)
            case Ref(name):
                return self.match(self.where[name], f"{path}/{name}", start)
            case Seq(items):
                ends: Ends = {start: {}}
                for i, item in enumerate(items):
                    ends = self._then(ends, item, f"{path}/{i}")
                return ends
            case Choice(options):
                found: Ends = {}
                for i, option in enumerate(options):
                    for end, answers in self.match(option, f"{path}/{i}", start).items():
                        found.setdefault(end, {path: print_node(option), **answers})
                return found
            case Repeat():
                counted = self._tied(node, path, start) if node.tied else self._untied(node, path, start)
                if node.low == node.high:
                    return {end: answers for end, (_, answers) in counted.items()}
                return {end: {f"{path}.count": n, **answers} for end, (n, answers) in counted.items()}

    def _then(self, ends: Ends, node: Node, path: str) -> Ends:
        reached: Ends = {}
        for middle, before in ends.items():
            for end, answers in self.match(node, path, middle).items():
                reached.setdefault(end, {**before, **answers})
        return reached

    def _operator(self, node: Op, path: str, start: int) -> Ends:
        if start == len(self.layers) or self.layers[start].op != node.name:
            return {}
        layer, listed = self.layers[start], dict(node.settings)
        have = dict(layer.settings)
        for key in listed.keys() - have.keys():
            setting = layer.spec.setting(key)
            assert setting is not None  # else the expression would not have been read
            have[key] = setting.default
        if have.keys() != listed.keys() or not all(have[key] in values for key, values in node.settings):
            return {}
        return {start + 1: {f"{path}.{key}": have[key] for key, values in node.settings if len(values) > 1}}

    def _tied(self, node: Repeat, path: str, start: int) -> CountedEnds:
        found: CountedEnds = {start: (0, {})} if node.low == 0 else {}
        for end, answers in self.match(node.body, body_path(node, path), start).items():
            block, at = self.layers[start:end], start
            for n in range(1, node.high + 1):
                if self.layers[at : at + len(block)] != block:
                    break
                at += len(block)
                if n >= node.low:
                    found.setdefault(at, (n, answers))
        return found

    def _untied(self, node: Repeat, path: str, start: int) -> CountedEnds:
        found: CountedEnds = {start: (0, {})} if node.low == 0 else {}
        ends: Ends = {start: {}}
        for n in range(1, node.high + 1):
            ends = self._then(ends, node.body, f"{path}/{n - 1}")
            if n >= node.low:
                for end, answers in ends.items():
                    found.setdefault(end, (n, answers))
        return found


def body_path(node: Repeat, path: str) -> str:
    return f"{path}/0" if isinstance(node.body, Repeat) else path  # two counts at one place need two names
