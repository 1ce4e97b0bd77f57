"""Limits that a member of a space must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import Field, field_validator

from nfsearch.space.architecture import Architecture
from nfsearch.space.family import rule_of
from nfsearch.space.layer import Layer
from nfsearch.space.operators import find_operator, operator_names
from nfsearch.support.names import nearest
from nfsearch.support.settings import Settings


class Limits(Settings):
    """What the paper and common sense bound. None means no limit."""

    layers: int | None = Field(default=None, gt=0, description="most operators in a model, FFNs counted")
    params: int | None = Field(default=None, gt=0, description="most parameters, embedding included")
    kinds_per_stage: int | None = Field(default=None, gt=0, description="most kinds of token mixer in one stage")
    required: tuple[str, ...] = Field(default=(), description="operators every model must contain")

    @field_validator("required")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if find_operator(name) is None:
                raise ValueError(f"unknown operator {name!r}{nearest(name, operator_names())}")
        return tuple(spec.name for name in names if (spec := find_operator(name)))

    def too_large(self, architecture: Architecture) -> bool:
        """Whether taking layers away could mend it."""
        return bool(
            (self.layers and len(architecture.layers) > self.layers)
            or (self.params and architecture.parameters > self.params)
        )

    def too_many_kinds(self, stage: Iterable[Layer]) -> bool:
        mixers = {layer.op for layer in stage if layer.spec.kind == "mixer"}
        return self.kinds_per_stage is not None and len(mixers) > self.kinds_per_stage

    def broken_by(self, stages: Sequence[Iterable[Layer]], architecture: Architecture) -> str | None:
        """The name of the first limit a member breaks, with the required operators that it lacks, or None. `stages` are
        its layers, stage by stage."""
        if not architecture.layers:
            return "no layers"
        if self.layers and len(architecture.layers) > self.layers:
            return "layers"
        if self.params and architecture.parameters > self.params:
            return "params"
        if any(map(self.too_many_kinds, stages)):
            return "kinds_per_stage"
        if lacking := self.lacking(architecture.layers):
            return f"required (no {', no '.join(lacking)})"
        return None

    def lacking(self, layers: Iterable[Layer]) -> list[str]:
        """The required operators that none of these layers is."""
        there = {layer.op for layer in layers}
        return [name for name in self.required if name not in there]


class Unreachable(ValueError):
    """No member within the limits was found in a bounded number of tries."""


class Misses:
    """Why designs that were drawn are no members, as text: the reasons by how often they were met."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, str] = {}  # of what a family refuses, by its rule

    def add(self, reason: str, refusal: str = "") -> None:
        """One more, with what a family said, if it refused."""
        if refusal:
            reason = rule_of(refusal)
            self._examples.setdefault(reason, refusal)
        self._reasons[reason] += 1

    def __str__(self) -> str:
        text = ", ".join(f"{reason} {count} times" for reason, count in self._reasons.most_common())
        example = next(
            (self._examples[reason] for reason, _ in self._reasons.most_common() if reason in self._examples), ""
        )
        hint = f". Write the space so that its members keep to that, or leave out `serves` (such as {example})"
        return text + hint if example else text
