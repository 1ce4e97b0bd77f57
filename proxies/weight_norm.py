"""Weight normalization: every matrix at the model's width kept at unit length while it learns (Nemotron-Flash)."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops.model import HybridLM

_SMALLEST = 1e-12  # a row of zeros stays one


class WeightNorm:
    """Projects the weights of a model's operators, in place; call it after each step of the optimizer.

    Matrices that read the hidden features (each operator's `row_normalised`: Case-1 of the paper, such as queries,
    keys, values, gate and up) get output rows W[i, :] of length one; those whose output is added to the hidden
    features (`column_normalised`: Case-2, such as the output and down projections) get input columns W[:, j] of length
    one, or with `output_scale` "depth" of length 1 / sqrt(layers), so that the features of deep models start no larger.
    Either way the axis of the model's width is the one that is normalised.

    Everything else is left alone, as the paper leaves it open: biases, norms, convolutions, decay parameters, the
    embedding, the head, and meta tokens.

    `train_model` projects once before the first step too. The paper does not say whether it does; without it the first
    step is taken far from the sphere (rows of length 0.02 sqrt(width)) and undone by the first projection.
    """

    def __init__(self, model: HybridLM, output_scale: str = "one") -> None:
        # Matrices [out, in] of one shape by the axis whose vectors are scaled and their length: handled at once,
        # because each alone takes several kernels that do next to nothing.
        self._cases: dict[tuple[torch.Size, int, float], list[Tensor]] = defaultdict(list)
        length = len(model.blocks) ** -0.5 if output_scale == "depth" else 1.0
        for operator in model.operators():
            for axis, scale, names in ((1, 1.0, operator.row_normalised), (0, length, operator.column_normalised)):
                for weight in map(operator.get_parameter, names):
                    self._cases[weight.shape, axis, scale].append(weight)

    @torch.no_grad()
    def __call__(self) -> None:
        for (_, axis, length), weights in self._cases.items():
            units = F.normalize(torch.stack(weights), dim=axis + 1, eps=_SMALLEST)
            torch._foreach_copy_(weights, list((units if length == 1.0 else units * length).unbind()))
