"""Which implementation a layer takes on a device, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from nfsearch.ops import fused
from nfsearch.ops.dispatch import Path
from nfsearch.ops.model import Block
from nfsearch.ops.operator import build_operator
from nfsearch.space import Layer


class Paths(NamedTuple):
    """What computes a layer's parallel form in training, and its one-token step."""

    training: Path
    decode: Path


def decode_dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def check(layers: Iterable[Layer], widths: Sequence[int], device: str, *, decode: bool) -> None:
    """Raises ValueError for the first layer that cannot be built at one of the widths, or cannot keep the state of a
    sequence on "cuda" or "cpu", or (with `decode`, on CUDA) cannot be captured in a graph.

    This is arithmetic for the project's operators; those of another package may import it and run for a token.
    """
    dtype = decode_dtype(device)
    for layer in layers:
        for width in widths:
            layer.cost(width)
        with torch.device("meta"):
            operator = build_operator(layer, widths[0])
        operator.init_state(1, 1, device=device, dtype=dtype)
        like = torch.empty(1, widths[0], device=device, dtype=dtype)
        if decode and like.is_cuda and (refusal := operator.graph_refusal(like)):
            raise ValueError(refusal)


def paths(layer: Layer, width: int, device: str, *, batch: int = 1) -> Paths:
    """The paths of a layer as the search runs it on "cuda" or "cpu": trained (in bf16 autocast on CUDA), decoding
    `batch` sequences without autograd (in bfloat16 on CUDA).

    On CUDA the kernels are compiled and checked for it, once a process. Raises ValueError where the layer's
    settings do not fit the width.
    """
    on_cuda = device == "cuda"
    with torch.device(device):
        block = Block(layer, width, 1e-6)
    x = torch.empty(batch, width, device=device)
    with torch.enable_grad(), torch.autocast(device, torch.bfloat16, enabled=on_cuda):
        training = block.operator.training_path(x)
    dtype = decode_dtype(device)
    if own := block.operator.decode_path(x.to(dtype)):
        return Paths(training, own)
    with torch.no_grad():
        refusal = fused.block_refusal(block.to(dtype), x.to(dtype))
    return Paths(training, Path("torch", refusal) if refusal else Path("triton", "agrees with the plain step here"))
