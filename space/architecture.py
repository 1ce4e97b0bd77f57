"""The type that describes a model, everywhere: an architecture, made of layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nfsearch.space.layer import Layer
from nfsearch.space.notation import parse_layers, print_layers
from nfsearch.space.operators import Cost


@dataclass(frozen=True, order=True)
class Architecture:
    """A whole model: token embedding, optional meta tokens, residual layers x + op(norm(x)), final norm, head.

    `head_norm` divides each logit by the length of its row of the head, as the released Nemotron-Flash models do. The
    head is the embedding, or with `tied_head=False` a matrix of its own.
    """

    width: int
    layers: tuple[Layer, ...]
    vocab: int = 32000
    meta_tokens: int = 0
    head_norm: bool = False
    norm_eps: float = 1e-6
    tied_head: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))

    @classmethod
    def parse(cls, layers: str, *, width: int, **rest: Any) -> Architecture:
        """From notation. Raises `NotationError` for bad text and ValueError for settings that do not fit the width."""
        architecture = cls(width, parse_layers(layers), **rest)
        architecture.check()
        return architecture

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_dict`: what JSON and YAML hold."""
        return cls.parse(**dict(fields))

    def to_dict(self) -> dict[str, Any]:
        return {
            "width": self.width,
            "layers": self.notation,
            "vocab": self.vocab,
            "meta_tokens": self.meta_tokens,
            "head_norm": self.head_norm,
            "norm_eps": self.norm_eps,
            **({} if self.tied_head else {"tied_head": False}),  # digests are of the fields that there always were
        }

    def check(self) -> None:
        """Raises ValueError if a layer's settings do not fit the width."""
        for layer in set(self.layers):
            layer.shape(self.width)

    @cached_property
    def notation(self) -> str:
        return print_layers(self.layers)

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that name the model built: equal for equal sizes, however the settings were written."""
        shapes = {layer: layer.shape(self.width) for layer in set(self.layers)}
        content = {**self.to_dict(), "layers": [[layer.op, shapes[layer]] for layer in self.layers]}
        return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()

    def costs(self) -> Iterable[Cost]:
        """The cost of each layer's operator, in order."""
        known = {layer: layer.cost(self.width) for layer in set(self.layers)}
        return [known[layer] for layer in self.layers]

    @cached_property
    def parameters(self) -> int:
        """All learned numbers: embedding, head (if it is not the embedding), meta tokens, operators and all norms."""
        return self.vocab * (1 if self.tied_head else 2) * self.width + self.non_embedding_parameters

    @cached_property
    def non_embedding_parameters(self) -> int:
        """Of `parameters`, all but embedding and head, which grow with the vocabulary and not with what a model can
        compute (Kaplan et al., arXiv 2001.08361, section 1.2)."""
        return (self.meta_tokens + 1) * self.width + sum(cost.parameters + self.width for cost in self.costs())

    def state_bytes(self, batch: int, length: int, itemsize: int = 2) -> int:
        """Bytes of state that decoding keeps for `length` tokens of text, meta tokens included."""
        return sum(cost.state_bytes(batch, length + self.meta_tokens, itemsize) for cost in self.costs())

    def __str__(self) -> str:
        return f"{self.notation} @ {self.width}"
