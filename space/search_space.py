"""A space of architectures is a program that asks questions.

Building a member walks the expression and asks at each open point "which of these?" under a stable name. Who answers
makes the difference: a random generator samples, recorded answers replay, an odometer enumerates, a mutator replays
with one answer changed, a crossover answers from two parents, and `SearchSpace.build_with` lets anything else answer.
There is one traversal and no second encoding.

A question is named by its place: `layers/0/unit/1.count` is the repeat count of item 1 of the expression `unit`, which
is item 0 of `layers`. Every question has the same options whenever it is asked.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any

from nfsearch.space.architecture import Architecture
from nfsearch.space.counting import answers_by_depth, deepest, operators_in
from nfsearch.space.family import Family
from nfsearch.space.layer import Layer
from nfsearch.space.limits import Limits, Misses, Unreachable
from nfsearch.space.membership import Found, Matcher, body_path
from nfsearch.space.notation import (
    MAX_LAYERS,
    Choice,
    Node,
    Op,
    Ref,
    Repeat,
    Seq,
    print_node,
    require_shallow,
)
from nfsearch.space.parts import Part, agreeing
from nfsearch.space.questions import (
    Answerer,
    Answers,
    Question,
    at_random,
    first_option,
    listed,
    replaying,
    strictly_replaying,
)

Fits = Callable[[Architecture], bool]
_Ask = Callable[..., int]  # of a question and the indices of the options that are possible, if not all: the one taken
MAX_PARTS = 10 * MAX_LAYERS  # of a member
MAX_BLOCKS = 20_000  # layers at widths: each is a row of a latency table
TRIES = 200  # draws before a limit is called unreachable


@dataclass(frozen=True)
class Member:
    """An architecture of a space, the answers that lead to it, the questions they answer (in the order asked), and the
    index of the first layer of each stage."""

    architecture: Architecture
    answers: dict[str, Any]
    questions: tuple[Question, ...] = field(repr=False, compare=False)
    stages: tuple[int, ...] = field(repr=False, compare=False)

    def stage_layers(self) -> list[tuple[Layer, ...]]:
        layers = self.architecture.layers
        return [layers[a:b] for a, b in zip(self.stages, (*self.stages[1:], len(layers)), strict=True)]


@dataclass(frozen=True)
class SearchSpace:
    """What can be built: an expression for the layers, whose top-level items are the stages, and a choice of widths.

    With `fit_width` the width is not a question: it is the widest for which the caller's `fits` holds (the paper's
    rule: the widest that meets the latency budget), and the widest of all where no `fits` is given.

    With `serves` an architecture that the family cannot express is no member, as if it broke a limit (see
    `nfsearch.space.serving`).

    Raises ValueError where an operator cannot have one of the widths, a member could exceed 2000 layers, or a limit
    names an operator that the space does not have.
    """

    layers: Node
    widths: tuple[int, ...]
    where: Mapping[str, Node] = field(default_factory=dict)
    fit_width: bool = False
    limits: Limits = field(default_factory=Limits)
    vocab: int = 32000
    meta_tokens: tuple[int, ...] = (0,)
    head_norm: bool = False
    tied_head: bool = True
    serves: Family | None = None
    left_out: tuple[Layer, ...] = ()  # what `serving` took out of the expressions

    def __post_init__(self) -> None:
        require_shallow(self.layers, self.where)
        depth = deepest(self.layers, self.where)
        if depth > MAX_LAYERS:
            raise ValueError(f"the space has members of {depth} layers; {MAX_LAYERS} is the most")
        if deepest(self.layers, self.where, empty=1) > MAX_PARTS:
            raise ValueError(f"the space has members of more than {MAX_PARTS:,} parts, those that are () counted")
        if sum(op.forms for op in operators_in(self.layers, self.where)) * len(self.widths) > MAX_BLOCKS:
            raise ValueError(
                f"the space has more than {MAX_BLOCKS:,} different layers, counting every combination of settings at "
                "every width"
            )
        for layer in self.alphabet():
            for width in self.widths:
                layer.shape(width)
        if unknown := self.limits.lacking(self.alphabet()):
            raise ValueError(f"limits.required names {', '.join(unknown)}, which the space does not have")

    # --- building --------------------------------------------------------------------------------------------------

    def build_with(self, answerer: Answerer, fits: Fits | None = None, part: Part | None = None) -> Member:
        """The member that these answers lead to, whatever its limits: `answerer` is called with each `Question` that
        the building raises, in order, and returns one of its options. A question with one option is not asked.

            space.build_with(lambda question: question.options[0])
            space.build_with(lambda question: trial.suggest_categorical(question.name, question.options))

        Of a `part`, which has a member, only the options that lead to one of its members are offered.

        Raises ValueError if an answer is no option."""
        answers: dict[str, Any] = {}
        questions: list[Question] = []

        def ask(question: Question, possible: Sequence[int] | None = None) -> int:
            if len(question.options) == 1:
                return 0
            offered = question if possible is None else question.offering(possible)
            answer = answerer(offered)
            if answer not in offered.options:
                raise ValueError(f"{question.name}: {answer!r} is none of {listed(offered.options)}")
            index = question.options.index(answer)
            questions.append(question)
            answers[question.name] = question.options[index]
            return index

        meta_tokens = self.meta_tokens[ask(Question("meta_tokens", "meta_tokens", self.meta_tokens))]
        widths = self.widths
        if not self.fit_width:
            widths = (self.widths[ask(Question("width", "width", self.widths))],)
        layers: list[Layer] = []
        starts = []
        for path, stage in self._stages():
            starts.append(len(layers))
            layers += self._layers(stage, path, ask, part, inner=False)
        for width in sorted(widths, reverse=True):
            architecture = self.architecture(width, tuple(layers), meta_tokens)
            if not self.fit_width or ((fits is None or fits(architecture)) and not self.refusal(architecture)):
                break
        return Member(architecture, answers, tuple(questions), tuple(starts))

    def architecture(self, width: int, layers: tuple[Layer, ...], meta_tokens: int) -> Architecture:
        """These layers, at this width and behind so many meta tokens, with what all members have in common."""
        return Architecture(width, layers, self.vocab, meta_tokens, head_norm=self.head_norm, tied_head=self.tied_head)

    def build(self, answers: Answers, fits: Fits | None = None) -> Member:
        """The member with these answers, whatever its limits. Raises ValueError if one is missing or is no option."""
        return self.build_with(strictly_replaying(answers), fits)

    def sample(self, rng: random.Random, fits: Fits | None = None) -> Member:
        """A random member within the limits: each question is answered uniformly (answers are uniform, members are
        not: one that few answers lead to is rare). Raises `Unreachable`."""
        return self._first_within_limits(lambda: self.build_with(at_random(rng), fits), rng, fits)

    def enumerate(self) -> Iterator[Member]:
        """Every member, limits and what it serves aside, once for each set of answers that leads to it."""
        prefix: list[int] = []
        while True:
            taken: list[tuple[int, int]] = []  # (index, number of options) of each question asked

            def odometer(question: Question, prefix: list[int] = prefix, taken: list[tuple[int, int]] = taken) -> Any:
                index = prefix[len(taken)] if len(taken) < len(prefix) else 0
                taken.append((index, len(question.options)))
                return question.options[index]

            yield self.build_with(odometer)
            while taken and taken[-1][0] == taken[-1][1] - 1:
                taken.pop()
            if not taken:
                return
            prefix = [index for index, _ in taken[:-1]] + [taken[-1][0] + 1]

    def mutate(self, answers: Answers, rng: random.Random, fits: Fits | None = None) -> tuple[Member, str]:
        """A different member with one question answered anew, and that question's kind.

        Questions that only the new answer raises are answered at random; repair to the limits may shorten further, and
        what a family wants the same in all layers follows the new answer.
        Raises `Unreachable`."""
        parent = self.build(answers, fits)
        if not parent.questions:
            raise Unreachable("the space has one member; nothing can be mutated")
        changed = parent.questions[0]

        def draw() -> Member:
            nonlocal changed
            changed = rng.choice(parent.questions)
            others = [option for option in changed.options if option != answers[changed.name]]
            return self.build_with(replaying({**answers, changed.name: rng.choice(others)}, at_random(rng)), fits)

        member = self._first_within_limits(draw, rng, fits, other_than=parent.architecture)
        return member, changed.kind

    def cross(self, one: Answers, other: Answers, rng: random.Random, fits: Fits | None = None) -> Member:
        """A member that takes each answer from one of two parents (at random where both have one). Raises
        `Unreachable`."""

        def draw() -> Member:
            def either(question: Question) -> Any:
                first, second = (one, other) if rng.random() < 0.5 else (other, one)
                return replaying(first, replaying(second, at_random(rng)))(question)

            return self.build_with(either, fits)

        return self._first_within_limits(draw, rng, fits)

    def _stages(self) -> list[tuple[str, Node]]:
        if isinstance(self.layers, Seq) and self.layers.items:
            return [(f"layers/{i}", item) for i, item in enumerate(self.layers.items)]
        return [("layers", self.layers)]

    def _layers(self, node: Node, path: str, ask: _Ask, part: Part | None, inner: bool) -> list[Layer]:
        """`inner`: inside a repeat, where a count is a ratio between operators rather than a number of blocks."""
        match node:
            case Op(name, settings):
                chosen: dict[str, Any] = {}
                for key, values in settings:
                    index = 0
                    if len(values) > 1:
                        possible = part and part.values(node, chosen, key)
                        index = ask(Question(f"{path}.{key}", "setting", values), possible)
                    chosen[key] = values[index]
                return [_layer(name, tuple(chosen.items()))]
            case Ref(name):
                return self._layers(self.where[name], f"{path}/{name}", ask, part, inner)
            case Seq(items):
                placed = ((f"{path}/{i}", item) for i, item in enumerate(items))
                return [layer for place, item in placed for layer in self._layers(item, place, ask, part, inner)]
            case Choice(options):
                index = ask(self._choice(options, path), part and part.options(options))
                return self._layers(options[index], f"{path}/{index}", ask, part, inner)
            case Repeat(body, low, _, tied):
                count = low + ask(self._count(node, path, inner), part and part.counts(node))
                if not count:
                    return []
                if tied:
                    return self._layers(body, body_path(node, path), ask, part, True) * count
                copies = (self._layers(body, f"{path}/{k}", ask, part, True) for k in range(count))
                return [layer for copy in copies for layer in copy]

    def _choice(self, options: tuple[Node, ...], path: str) -> Question:
        if path not in self._known:
            single = all(isinstance(option, Op) for option in options)
            self._known[path] = Question(path, "operator" if single else "pattern", tuple(map(print_node, options)))
        return self._known[path]

    def _count(self, node: Repeat, path: str, inner: bool) -> Question:
        name = f"{path}.count"
        if name not in self._known:
            only_ffn = {Layer(op.name).spec.kind for op in operators_in(node, self.where)} == {"ffn"}
            kind = "ffn" if only_ffn else "ratio" if inner else "blocks"
            self._known[name] = Question(name, kind, tuple(range(node.low, node.high + 1)))
        return self._known[name]

    @cached_property
    def _known(self) -> dict[str, Question]:
        """Choices and counts asked before, by name: to write them anew takes a third of building a member."""
        return {}

    # --- limits, and what the space serves ---------------------------------------------------------------------------

    def _first_within_limits(
        self, draw: Callable[[], Member], rng: random.Random, fits: Fits | None, other_than: Architecture | None = None
    ) -> Member:
        misses = Misses()
        for _ in range(TRIES):
            member = self._repaired(self._agreed(draw(), rng, fits, other_than), fits)
            reason = self.limits.broken_by(member.stage_layers(), member.architecture)
            refusal = "" if reason else self.refusal(member.architecture)
            if not reason and not refusal and member.architecture != other_than:
                return member
            misses.add(reason or "no change", refusal)
        raise Unreachable(f"no member within the limits in {TRIES} tries: {misses}")

    def _agreed(self, member: Member, rng: random.Random, fits: Fits | None, parent: Architecture | None) -> Member:
        """The member, where it has layers that no model of the family has together, with other answers at random in
        place of those that lead to them. What is new compared with a parent stays."""
        if self.serves is None:
            return member
        layers, width = member.architecture.layers, member.architecture.width
        part = Part(agreeing(self.serves, layers, width, rng, after=parent.layers if parent else ()), self.where)
        if all(map(part.allowed, layers)) or not part.has(self.layers):
            return member
        return self.build_with(replaying(member.answers, at_random(rng)), fits, part)

    def refusal(self, architecture: Architecture) -> str:
        """Why the family that the space serves cannot express an architecture; "" where it can, or there is none."""
        return self.serves.refusal(architecture) if self.serves else ""

    def _repaired(self, member: Member, fits: Fits | None) -> Member:
        """While a member is too deep or too large, its last stage loses a block (paper, section on the search space);
        where no stage can, the last count that can shrink does."""
        while self.limits.too_large(member.architecture):
            counts = [
                question
                for question in member.questions
                if question.name.endswith(".count") and member.answers[question.name] > question.options[0]
            ]
            if not counts:
                return member
            last = ([q for q in counts if q.kind == "blocks"] or counts)[-1]
            answers = {**member.answers, last.name: member.answers[last.name] - 1}
            member = self.build_with(replaying(answers, first_option), fits)
        return member

    # --- counting --------------------------------------------------------------------------------------------------

    def count(self) -> int:
        """The number of answer sets, exactly and without enumerating, limits and what the space serves aside.

        A member that several answer sets lead to counts several times."""
        return sum(self.count_by_depth().values())

    def count_within_depth(self) -> int:
        """The same for members that keep the layer limit."""
        limit = self.limits.layers
        return sum(n for depth, n in self.count_by_depth().items() if limit is None or depth <= limit)

    def count_by_depth(self) -> dict[int, int]:
        """Answer sets by the number of layers of the member: the coefficients of a generating function."""
        heads = len(self.meta_tokens) * (1 if self.fit_width else len(self.widths))
        return {depth: n * heads for depth, n in sorted(answers_by_depth(self.layers, self.where).items())}

    def alphabet(self) -> tuple[Layer, ...]:
        """Every layer that a member can contain, sorted."""
        return tuple(sorted({layer for op in operators_in(self.layers, self.where) for layer in op.layers()}, key=str))

    # --- membership ------------------------------------------------------------------------------------------------

    def locate(self, architecture: Architecture) -> dict[str, Any] | None:
        """Answers that lead to this architecture, or None if it is no member, breaks a limit or cannot be expressed."""
        if architecture.width not in self.widths or architecture.meta_tokens not in self.meta_tokens:
            return None
        if self.limits.broken_by([], architecture) or self.refusal(architecture):
            return None
        answers = self.locate_layers(architecture.layers)
        if answers is None:
            return None
        if len(self.meta_tokens) > 1:
            answers = {"meta_tokens": architecture.meta_tokens, **answers}
        if not self.fit_width and len(self.widths) > 1:
            answers["width"] = architecture.width
        return answers

    def locate_layers(self, layers: tuple[Layer, ...]) -> dict[str, Any] | None:
        """Answers whose member has these layers and keeps the limit on kinds per stage, or None."""
        matcher = Matcher(self.where, layers)
        ends: dict[int, Found] = {0: Found()}
        for path, stage in self._stages():
            reached: dict[int, Found] = {}
            for start, before in ends.items():
                for end, found in matcher.match(stage, start).items():
                    if end not in reached and not self.limits.too_many_kinds(layers[start:end]):
                        reached[end] = before.and_then(found.at(path))
            ends = reached
        whole = ends.get(len(layers))
        return whole.answers() if whole else None

    @cached_property
    def notation(self) -> str:
        """The expression of the layers and, below it, each named one."""
        lines = [print_node(self.layers)]
        return "\n".join([*lines, *(f"{name} = {print_node(node)}" for name, node in self.where.items())])


@cache
def _layer(name: str, settings: tuple[tuple[str, Any], ...]) -> Layer:
    return Layer(name, settings)
