"""Which answers lead to an architecture? Matching layers against an expression, as a parser would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from nfsearch.space.layer import Layer
from nfsearch.space.notation import Choice, Node, Op, Ref, Repeat, Seq, print_node


class Found(NamedTuple):
    """Answers that a match found, as a tree that shares what others found too: at a place, relative to that of the
    tree above, one answer, or the answers of some parts."""

    place: str = ""
    answer: tuple[Any, ...] = ()  # one, or none
    parts: tuple[Found, ...] = ()

    def at(self, place: str) -> Found:
        return Found(place, parts=(self,))

    def and_then(self, other: Found) -> Found:
        return Found(parts=(self, other))

    def answers(self) -> dict[str, Any]:
        """By the full names of their questions."""
        found, todo = {}, [("", self)]
        while todo:
            above, top = todo.pop()
            place = above + top.place
            for answer in top.answer:
                found[place] = answer
            todo += [(place, part) for part in reversed(top.parts)]
        return found


Ends = dict[int, Found]  # where a match can end -> answers that end it there
CountedEnds = dict[int, tuple[int, Found]]  # the same, with the number of repeats


class Matcher:
    """Matches layers against an expression: from each start, every end it can reach and answers that reach it. What an
    expression matches from a start is found once, however many places it stands at."""

    def __init__(self, where: Mapping[str, Node], layers: tuple[Layer, ...]) -> None:
        self.where, self.layers = where, layers
        self.known: dict[tuple[int, int], Ends] = {}

    def match(self, node: Node, start: int) -> Ends:
        key = (id(node), start)  # the space keeps its nodes; to compare them would take long
        if key not in self.known:
            self.known[key] = self._match(node, start)
        return self.known[key]

    def _match(self, node: Node, start: int) -> Ends:
        match node:
            case Op():
                return self._operator(node, start)
            case Ref(name):
                return {end: found.at(f"/{name}") for end, found in self.match(self.where[name], start).items()}
            case Seq(items):
                ends: Ends = {start: Found()}
                for i, item in enumerate(items):
                    ends = self._then(ends, item, f"/{i}")
                return ends
            case Choice(options):
                reached: Ends = {}
                for i, option in enumerate(options):
                    for end, found in self.match(option, start).items():
                        if end not in reached:
                            reached[end] = Found(answer=(print_node(option),), parts=(found.at(f"/{i}"),))
                return reached
            case Repeat():
                counted = self._tied(node, start) if node.tied else self._untied(node, start)
                if node.low == node.high:
                    return {end: found for end, (_, found) in counted.items()}
                return {end: Found(".count", answer=(n,)).and_then(found) for end, (n, found) in counted.items()}

    def _then(self, ends: Ends, node: Node, place: str) -> Ends:
        reached: Ends = {}
        for middle, before in ends.items():
            for end, found in self.match(node, middle).items():
                if end not in reached:
                    reached[end] = before.and_then(found.at(place))
        return reached

    def _operator(self, node: Op, start: int) -> Ends:
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
        found = Found()
        for key, values in node.settings:
            if len(values) > 1:
                found = found.and_then(Found(f".{key}", answer=(have[key],)))
        return {start + 1: found}

    def _tied(self, node: Repeat, start: int) -> CountedEnds:
        reached: CountedEnds = {start: (0, Found())} if node.low == 0 else {}
        for end, found in self.match(node.body, start).items():
            block, at = self.layers[start:end], start
            for n in range(1, node.high + 1):
                if self.layers[at : at + len(block)] != block:
                    break
                at += len(block)
                if n >= node.low:
                    reached.setdefault(at, (n, found.at(body_path(node, ""))))
        return reached

    def _untied(self, node: Repeat, start: int) -> CountedEnds:
        reached: CountedEnds = {start: (0, Found())} if node.low == 0 else {}
        ends: Ends = {start: Found()}
        for n in range(1, node.high + 1):
            before, ends = ends, self._then(ends, node.body, f"/{n - 1}")
            if n >= node.low:
                for end, found in ends.items():
                    reached.setdefault(end, (n, found))
                if ends.keys() == before.keys():
                    break  # nothing new will be reached
        return reached


def body_path(node: Repeat, path: str) -> str:
    return f"{path}/0" if isinstance(node.body, Repeat) else path  # two counts at one place need two names
