"""Weight normalization: every matrix at the model's width kept at unit length while it learns (Nemotron-Flash)."""

from __future__ import annotations

import torch
from torch import Tensor

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
    embedding (which is the head as well), and meta tokens.

    `train_model` projects once before the first step too. The paper does not say whether it does; without it the first
    step is taken far from the sphere (rows of length 0.02 sqrt(width)) and undone by the first projection.
    """

    def __init__(self, model: HybridLM, output_scale: str = "one") -> None:
        # Matrices [out, in], the axis whose vectors are scaled, and their length.
        self._cases: list[tuple[Tensor, int, float]] = []
        length = len(model.blocks) ** -0.5 if output_scale == "depth" else 1.0
        for operator in model.operators():
            self._cases += [(operator.get_parameter(name), 1, 1.0) for name in operator.row_normalised]
            self._cases += [(operator.get_parameter(name), 0, length) for name in operator.column_normalised]

    @torch.no_grad()
    def __call__(self) -> None:
        for weight, axis, length in self._cases:
            norms = torch.linalg.vector_norm(weight, dim=axis, keepdim=True).clamp_min_(_SMALLEST)
            weight.div_(norms if length == 1.0 else norms / length)
