"""Weights of a module, as a bound step reads them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

Held = Callable[[], Tensor]


def held(module: Any, name: str = "weight") -> Held:
    """A parameter of the module, looked up at each call, since another may have taken its place."""
    return partial(module._parameters.__getitem__, name)
