"""Which implementation a layer takes on a device, and why."""

from __future__ import annotations

from typing import NamedTuple

import torch

from nfsearch.ops import fused
from nfsearch.ops.dispatch import Path
from nfsearch.ops.model import Block
from nfsearch.space import Layer


class Paths(NamedTuple):
    """What computes a layer's parallel form in training, and its one-token step."""

    training: Path
    decode: Path


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
    dtype = torch.bfloat16 if on_cuda else torch.float32
    with torch.no_grad():
        refusal = fused.block_refusal(block.to(dtype), x.to(dtype))
    return Paths(training, Path("torch", refusal) if refusal else Path("triton", "agrees with the plain step here"))
