"""What a family of models can express, known without torch.

A family is a type of model that other software opens, such as nemotron_h. Its rules are written down as data: which
operators it has, which values their settings must have, of which numbers it has one for all layers. So a space can
leave out whatever breaks them before anything is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, ClassVar

from nfsearch.space.architecture import Architecture
from nfsearch.space.layer import Layer, print_value
from nfsearch.support.registry import Registry

# As operators' modules, exporters are found by name: this package does not know them.
_EXPORTERS: Registry[Any] = Registry("nfsearch.exporters", "exporter")


@dataclass(frozen=True)
class Expressed:
    """How a family expresses an operator, by the names of its settings and of the sizes that follow from them.

    `numbers`: those of which the family has one for all layers, each with the field of the family's config that holds
    it. `only`: those that must have one of these values."""

    numbers: Mapping[str, str] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


class Family:
    """The rules of a family: subclass it, say `family`, `operators` and `paired`, and add to `model_refusal` or
    `layer_refusal` what these cannot say.

    A refusal is "" or one sentence with a colon: what was found and where, and after the colon the family's rule."""

    family: str
    operators: ClassVar[Mapping[str, Expressed]]  # by the short name
    paired: ClassVar[bool] = False  # each of its layers is a mixer with the F after it
    required: ClassVar[str] = ""  # the operator whose layers it counts tokens by, so that each model needs one

    def refusal(self, architecture: Architecture) -> str:
        """Why the family cannot express this architecture, naming the layer and the setting; "" where it can."""
        return next(filter(None, self._refusals(architecture)), "")

    def model_refusal(self, architecture: Architecture) -> str:
        """Why it cannot, whatever the layers are."""
        if architecture.meta_tokens:
            return f"meta_tokens is {architecture.meta_tokens}: {self.family} has none"
        if architecture.head_norm:
            return f"head_norm is true: {self.family} does not divide its logits"
        return ""

    def layer_refusal(self, layer: Layer, width: int) -> str:
        """Why it cannot express this layer in any model of this width. The sentence begins with the layer."""
        if layer.op not in self.operators:
            return f"{layer}: {self.family} has layers for {', '.join(self.operators)} alone"
        found = values_of(layer, width)
        for name, wanted in self.operators[layer.op].only.items():
            if found[name] not in wanted:
                texts = (f"{name}={print_value(value)}" for value in wanted)
                return f"{layer}, with {name}={print_value(found[name])}: {self.family} needs {' or '.join(texts)}"
        return ""

    def numbers(self, layer: Layer, width: int) -> dict[str, Any]:
        """The fields of the family's config that a layer it can express decides, which all layers must agree on."""
        found = values_of(layer, width)
        return {field: found[name] for name, field in self.operators[layer.op].numbers.items()}

    @property
    def required_refusal(self) -> str:
        """What it says of a model without the operator that it needs."""
        name = Layer(self.required).spec.long_name.replace("_", " ")
        return f"no layer is {self.required}: {self.family} counts the tokens in its cache by those of {name} layers"

    def _refusals(self, architecture: Architecture) -> Iterator[str]:
        yield self.model_refusal(architecture)
        for index, layer in enumerate(architecture.layers):
            if said := self.layer_refusal(layer, architecture.width):
                yield f"layer {index} is {said}"
        yield self._numbers_refusal(architecture)
        if self.paired:
            yield self._pairs_refusal(architecture.layers)
        if self.required not in ("", *(layer.op for layer in architecture.layers)):
            yield self.required_refusal

    def _numbers_refusal(self, architecture: Architecture) -> str:
        decided: dict[str, tuple[int, Layer, Any]] = {}
        for index, layer in enumerate(architecture.layers):
            names = {field: name for name, field in self.operators[layer.op].numbers.items()}
            for field_, value in self.numbers(layer, architecture.width).items():
                first, before, number = decided.setdefault(field_, (index, layer, value))
                if value != number:
                    found = f"{names[field_]}={print_value(value)}{_by(names[field_], layer, before)}"
                    other = f"layer {first} is {before}, with {print_value(number)}"
                    rule = f"{self.family} has one {field_} for all layers"
                    return f"layer {index} is {layer}, with {found}, and {other}: {rule}"
        return ""

    def _pairs_refusal(self, layers: tuple[Layer, ...]) -> str:
        for index, layer in enumerate(layers):
            mixes = layer.spec.kind == "mixer"
            place = ""
            if mixes != (index % 2 == 0):
                place = "where an F is due" if mixes else "where a mixer is due"
            elif mixes and index == len(layers) - 1:
                place = "with no F after it"
            if place:
                return f"layer {index} is {layer}, {place}: {self.family} is made of pairs, a mixer and the F after it"
        return ""


def rule_of(refusal: str) -> str:
    """The family's rule in a refusal."""
    return refusal.rpartition(": ")[2]


@lru_cache(maxsize=100_000)
def values_of(layer: Layer, width: int) -> Mapping[str, Any]:
    """The settings of a layer and the sizes that follow from them, by name; a size where both have one name. Of
    attention, `rope` is the share of a head that turns, whole pairs of values, which the setting is rounded to."""
    found = {**layer.values, **layer.shape(width)}
    return {**found, "rope": _rotary_share(**found)} if layer.op == "A" else found


def _rotary_share(head_dim: int, rotary: int | None = None, **_: Any) -> float:
    """So exact that its product with head_dim, rounded down as families do it, is the number of values that turn."""
    turned = head_dim if rotary is None else rotary
    share = turned / head_dim
    return share if int(head_dim * share) == turned else math.nextafter(share, 1)


def _by(name: str, layer: Layer, other: Layer) -> str:
    """The settings that make a size of two layers of an operator differ, where the size is no setting itself."""
    one, two = layer.values, other.values
    return (
        "" if name in one or layer.op != other.op else f" (by {', '.join(key for key in one if one[key] != two[key])})"
    )


class _Other(Family):
    """An exporter of another package, of which is known what it refuses, but not by which rules."""

    def __init__(self, name: str, refusal: Callable[[Architecture], str]) -> None:
        self.family, self._refusal = name, refusal

    def refusal(self, architecture: Architecture) -> str:
        return self._refusal(architecture)

    def model_refusal(self, architecture: Architecture) -> str:
        return ""

    def layer_refusal(self, layer: Layer, width: int) -> str:
        return ""

    def numbers(self, layer: Layer, width: int) -> dict[str, Any]:
        return {}


@cache
def find_family(name: str) -> Family:
    """What the exporter of that name expresses. Raises ValueError for a name that no exporter has, with the nearest one
    that is known, and for an exporter that can express anything."""
    exporter = _EXPORTERS.find(name)()
    if isinstance(exporter, Family):
        return exporter
    if not hasattr(exporter, "refusal"):
        raise ValueError(f"{name} can write any design, so there is nothing that a space would have to keep to")
    return _Other(name, exporter.refusal)
