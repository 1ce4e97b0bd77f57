"""Layers of flash-linear-attention as operators, `fla:LAYER`: any layer that the installed package has."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from functools import cache, partial

from nfsearch.space.operators.spec import Cost, OperatorSpec, Setting, Shape, Value

_MODULE = "nfsearch.ops.fla_layers"  # knows the layers, and imports them


def _shape(name: str, width: int, **settings: Value) -> Shape:
    return dict(layer=name, settings=settings)


def _cost(width: int, layer: str, settings: Mapping[str, Value]) -> Cost:
    return importlib.import_module(_MODULE).cost(width, layer, settings)


@cache
def fla_operator(name: str) -> OperatorSpec:
    """The operator `fla:LAYER`. Its settings are whatever the layer's constructor takes, which is known where the
    layer is built: a space is described without the package, and reads the same whichever version is installed."""
    return OperatorSpec(
        name=name,
        long_name=name,
        kind="mixer",
        module=f"{_MODULE}:FlaLayer",
        settings={},
        shape=partial(_shape, name.removeprefix("fla:")),
        cost=_cost,
        # no value equals NaN, so that each is kept
        free=Setting(math.nan, "an argument of the layer's constructor", type=object, optional=True),
    )
