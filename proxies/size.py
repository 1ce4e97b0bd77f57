"""The loss of a short training, corrected for the size of the model: of two models with the same loss after few tokens
the larger one ends lower, as less of what it can learn is learned."""

from __future__ import annotations

from typing import Any

import numpy as np

SIZE = 1e7  # non-embedding parameters of a model whose sized loss is its loss


def sized(loss: Any, parameters: Any, weight: float) -> Any:
    """`loss`, in nats, less `weight` for each factor of e that the non-embedding parameters are more than 10M: numbers,
    or arrays of one shape."""
    return loss - weight * np.log(parameters / SIZE)
