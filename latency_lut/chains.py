"""Chains of blocks with weights of their own: what the profiler times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nfsearch.latency_lut.keys import EMBEDDING, Key
from nfsearch.ops.model import Block, HybridLM
from nfsearch.space.architecture import Architecture
from nfsearch.space.notation import parse_layers

Link = Callable[[Tensor], Tensor]


class Weights:
    """The modules that all rows of one block, width and dtype share. They are made as long chains ask for them."""

    def __init__(self, key: Key, kind: str) -> None:
        self.block, self.width, self.kind = key.block, key.width, kind
        self.dtype: torch.dtype = getattr(torch, key.dtype)
        self._key = key
        self._modules: list[nn.Module] = []

    def serve(self, key: Key) -> bool:
        """Whether a chain of `key` can be made of them."""
        return (key.block, key.width, getattr(torch, key.dtype)) == (self.block, self.width, self.dtype)

    def first(self, count: int) -> list[nn.Module]:
        """The first `count` modules: blocks, or models without layers for the two ends of a model. A model has one
        embedding, so a chain of embeddings shares it, and each link looks up rows of its own."""
        if self._key.end == EMBEDDING:
            count = 1
        while len(self._modules) < count:
            with torch.device(self.kind):
                self._modules.append(self._new().to(self.dtype).eval())
        return self._modules[:count]

    def _new(self) -> nn.Module:
        if self._key.end:
            settings = self._key.end_settings
            return HybridLM(Architecture(self.width, (), int(settings["vocab"]), head_norm="head_norm" in settings))
        (layer,) = parse_layers(self.block)
        return Block(layer, self.width, 1e-6)


@dataclass
class Chain:
    """Links run one after the other, each on what the one before gave."""

    x: Tensor  # [batch, width] in decode, [batch, time, width] in prefill
    links: list[Link]

    @classmethod
    def of(cls, key: Key, length: int, weights: Weights) -> Chain:
        shape = (key.batch, key.width) if key.phase == "decode" else (key.batch, key.context, key.width)
        x = torch.randn(shape, device=weights.kind).to(weights.dtype)
        modules = weights.first(length)
        if key.end == EMBEDDING:
            return cls(x, [_embedding_link(key, modules[0]) for _ in range(length)])
        make = _head_link if key.end else _block_link
        return cls(x, [make(key, module) for module in modules])

    def run(self, length: int) -> Tensor:
        x = self.x
        for link in self.links[:length]:
            x = link(x)
        return x


def _block_link(key: Key, block: nn.Module) -> Link:
    assert isinstance(block, Block)
    weight = block.norm.weight
    room = key.context + (key.phase == "decode")
    state = block.operator.init_state(key.batch, room, device=weight.device, dtype=weight.dtype)
    if key.phase == "prefill":
        return lambda x: block(x, state)
    fill(state)
    position = torch.tensor(key.context, device=weight.device)
    return lambda x: block.step(x, state, position)


def _head_link(key: Key, model: nn.Module) -> Link:
    assert isinstance(model, HybridLM)

    def link(x: Tensor) -> Tensor:
        model.next_logits(x)
        return x

    return link


def _embedding_link(key: Key, model: nn.Module) -> Link:
    assert isinstance(model, HybridLM)
    decode = key.phase == "decode"
    shape = (key.batch,) if decode else (key.batch, key.context)
    tokens = torch.randint(model.architecture.vocab, shape, device=model.embedding.weight.device)
    embed = model.embed_next if decode else model.embedding
    return lambda x: embed(tokens)


def fill(state: dict[str, Tensor]) -> None:
    """Random contents: a state of zeros costs less power, and so less time, than one in use."""
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.normal_(std=0.1)


def touched(key: Key) -> int:
    """Bytes that one link touches at least: weights, state, and the activations that come in, are normalised, leave
    the operator and go on."""
    itemsize = getattr(torch, key.dtype).itemsize
    activations = key.tokens * key.width * itemsize
    if key.end == EMBEDDING:
        return 2 * activations
    if key.end:
        return int(key.end_settings["vocab"]) * key.width * itemsize + activations
    (layer,) = parse_layers(key.block)
    cost = layer.cost(key.width)
    state = cost.state_bytes(key.batch, key.context + (key.phase == "decode"), itemsize)
    return (cost.parameters + key.width) * itemsize + state + 4 * activations
