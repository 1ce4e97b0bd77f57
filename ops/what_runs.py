"""What runs of a layer on a device, and why."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch

from nfsearch.ops.forms import Choice
from nfsearch.ops.model import Block
from nfsearch.ops.operator import build_operator
from nfsearch.space import Layer


class Runs(NamedTuple):
    """What computes a layer's parallel form in training, and its one-token step."""

    training: Choice
    decode: Choice


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
        if decode and like.is_cuda and (reason := operator.prevents_capture(like)):
            raise ValueError(reason)


def what_runs(layer: Layer, width: int, device: str, *, batch: int = 1) -> Runs:
    """What computes a layer as the search runs it on "cuda" or "cpu": trained (in bf16 autocast on CUDA), decoding
    `batch` sequences without autograd (in bfloat16 on CUDA).

    On CUDA the kernels are compiled and checked for it, once a process. Raises ValueError where the layer's
    settings do not fit the width.
    """
    on_cuda = device == "cuda"
    with torch.device(device):
        block = Block(layer, width, 1e-6)
    x = torch.empty(batch, width, device=device)
    with torch.enable_grad(), torch.autocast(device, torch.bfloat16, enabled=on_cuda):
        training = block.operator.parallel_choice(x)
    dtype = decode_dtype(device)
    if own := block.operator.step_choice(x.to(dtype)):
        return Runs(training, own)
    with torch.no_grad():
        state = block.operator.init_state(batch, 1, device=device, dtype=dtype)
        return Runs(training, block.to(dtype).step_choice(x.to(dtype), state))
