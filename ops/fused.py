"""Decoding on the fused Triton kernels: where they can serve, and only after they have been checked.

The first time a kind of block meets a dtype and a batch, one fused step is compared with the plain one on random
inputs and states (see `selfcheck`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nfsearch.ops.selfcheck import compile_together, missing, relative, verdict

if TYPE_CHECKING:
    from nfsearch.ops.model import Block, HybridLM
    from nfsearch.ops.operator import State

_MANY = 64  # sequences: more run the same kernels, so that a check of so many serves for all (and fits into memory)
_SLOTS = 200  # tokens that the states of a check have room for
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 5e-3}  # relative, of outputs and states


def block_refusal(block: Block, x: Tensor, state: State | None = None) -> str:
    """Why this block decodes x [batch, width] on this state (or a small one) by the plain step, or nothing."""
    if reason := _unsuitable(x):
        return reason
    from nfsearch.ops.kernels.decode import blocks as decode

    operator = block.operator
    if not type(operator).__module__.startswith("nfsearch.ops."):
        return f"no kernels for {type(operator).__name__}"
    if reason := decode.refusal(operator, x.dtype):
        return reason
    sizes = tuple(tuple(parameter.shape) for parameter in operator.parameters())
    name, how = type(operator).__name__, decode.choices(state)
    return verdict(
        (name, sizes, x.dtype, min(len(x), _MANY), *how.values()),
        f"{name}'s step ({x.dtype})",
        lambda: _block_error(block, x, how),
        _TOLERANCE[x.dtype],
    )


def block_step(block: Block, x: Tensor, state: State, position: Tensor, **how: Any) -> Tensor:
    """x + operator(norm(x)) for one token of each sequence, [batch, width]; writes the state in place."""
    from nfsearch.ops.kernels.decode import blocks as decode

    step = decode.BLOCKS[type(block.operator).__name__]
    return step(x, block.norm.weight, block.norm.eps, block.operator, state, position, **how)


def embedding_refusal(model: HybridLM, tokens: Tensor) -> str:
    """Why the embeddings of tokens [batch] are looked up by torch, or nothing."""
    weight = model.embedding.weight
    if reason := _unsuitable(weight):
        return reason
    key = ("embedding", tuple(weight.shape), weight.dtype)
    return verdict(key, f"the embedding ({weight.dtype})", lambda: _embedding_error(model, tokens), 0.0)


def embed(model: HybridLM, tokens: Tensor) -> Tensor:
    """Embeddings [batch, width] of tokens [batch]."""
    from nfsearch.ops.kernels.decode import embedding

    return embedding.embed(tokens, model.embedding.weight)


def head_refusal(model: HybridLM, x: Tensor) -> str:
    """Why the logits of x [batch, width] come from the plain norm and head, or nothing."""
    if reason := _unsuitable(x):
        return reason
    if x.shape[1] % 8:
        return f"{x.shape[1]} values are not a multiple of 8"
    key = ("head", tuple(model.embedding.weight.shape), model.architecture.head_norm, x.dtype, min(len(x), _MANY))
    return verdict(key, f"the head ({x.dtype})", lambda: _head_error(model, x), _TOLERANCE[x.dtype])


def head(model: HybridLM, x: Tensor) -> Tensor:
    """Logits [batch, vocab] in float32 of the last block's x [batch, width]."""
    from nfsearch.ops.kernels.decode import blocks as decode

    return decode.head(x, model.norm.weight, model.norm.eps, model.embedding.weight, model.architecture.head_norm)


def _unsuitable(x: Tensor) -> str:
    if not x.is_cuda:
        return f"the tensors are on {x.device.type}, not CUDA"
    if torch.is_grad_enabled():
        return "the kernels compute no gradients"
    if torch.is_autocast_enabled("cuda"):
        return "autocast chooses other dtypes"
    if x.dtype not in _TOLERANCE:
        return f"no kernels for {x.dtype}"
    return missing()


@torch.no_grad()
def _block_error(block: Block, x: Tensor, how: dict[str, Any]) -> float:
    """On a small state, but with the kernels that are chosen for the one in use."""
    random = torch.Generator(x.device).manual_seed(0)
    x = x[:_MANY]
    state = block.operator.init_state(len(x), _SLOTS, device=x.device, dtype=x.dtype)
    for tensor in state.values():
        tensor.normal_(generator=random)
    fused = {name: tensor.clone() for name, tensor in state.items()}
    probe = torch.empty_like(x).normal_(generator=random)
    position = torch.tensor(_SLOTS - 2, device=x.device)
    spare = {name: tensor.clone() for name, tensor in fused.items()}
    compile_together(lambda: block_step(block, probe, spare, position, **how), x.device)
    expected = probe + block.operator.step(block.norm(probe), state, position)
    got = block_step(block, probe, fused, position, **how)
    return max(relative(got, expected), *(relative(fused[name], state[name]) for name in state), 0.0)


@torch.no_grad()
def _embedding_error(model: HybridLM, tokens: Tensor) -> float:
    probe = torch.arange(4, device=tokens.device) * (model.architecture.vocab - 1) // 3  # the first and last among them
    return relative(embed(model, probe), model.embedding(probe))


@torch.no_grad()
def _head_error(model: HybridLM, x: Tensor) -> float:
    probe = torch.empty_like(x[:_MANY]).normal_(generator=torch.Generator(x.device).manual_seed(0))
    return relative(head(model, probe), model.head(model.norm(probe)))
