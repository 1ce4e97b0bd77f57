"""What each operator is called, which settings it takes, which shapes follow from them, and what it costs.

Torch is not needed here: a space can be described, counted, sampled and held to a parameter limit in an instant. The
modules that compute are named by `OperatorSpec.module` and imported by `nfsearch.ops` when a model is built.

Other packages add operators through the entry-point group `nfsearch.operators`; each entry is an `OperatorSpec`.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import entry_points
from typing import Any

Value = int | float | bool | str | None
Shape = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """One setting of an operator: its default, what it may be, and what it means."""

    default: Value
    help: str
    type: type = int
    optional: bool = False  # `none` is allowed
    choices: tuple[Value, ...] | None = None
    minimum: float = 1

    def expected(self) -> str:
        """What a valid value looks like, in words."""
        if self.choices is not None:
            return "one of " + ", ".join(str(c) for c in self.choices)
        if self.type is bool:
            return "true or false"
        if self.type is object:
            return "a number, true, false, none or a word"
        words = {int: "a whole number", float: "a number"}[self.type] + f" of at least {self.minimum:g}"
        return words + (" or none" if self.optional else "")

    def accepts(self, value: Value) -> bool:
        if value is None:
            return self.optional
        if self.choices is not None:
            return value in self.choices
        if self.type is object:
            return _can_be_written(value)
        if self.type is bool or isinstance(value, bool):
            return self.type is bool and isinstance(value, bool)
        kinds = (int, float) if self.type is float else (int,)
        return isinstance(value, kinds) and value >= self.minimum

    def normal(self, value: Value) -> Value:
        """An accepted value in the one form in which it is kept: 2 and 2.0 are the same."""
        if self.type is float and value is not None:
            return float(value)
        return int(value) if self.type is object and isinstance(value, float) and value.is_integer() else value


def _can_be_written(value: Value) -> bool:
    """Whether the notation has a text that reads back as this value."""
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z_][\w:]*", value) is not None and value not in ("none", "true", "false")
    return not isinstance(value, float) or math.isfinite(value)


@dataclass(frozen=True)
class Cost:
    """What one operator costs, exactly. Numbers are counts of values, not bytes, unless the name says bytes.

    `state` is the recurrent state of one sequence (kept in float32, or in the model's dtype if that is wider);
    `buffer` is the rest of what one sequence keeps whatever its length (short convolutions, model dtype);
    `cache_per_token` grows with the sequence up to `window` tokens (keys and values, model dtype).
    """

    parameters: int
    state: int = 0
    buffer: int = 0
    cache_per_token: int = 0
    window: int | None = None
    flops_per_token: int = 0  # one decoded token, attention over the past apart
    flops_per_past_token: int = 0

    def cached_tokens(self, length: int) -> int:
        return length if self.window is None else min(length, self.window)

    def state_bytes(self, batch: int, max_length: int, itemsize: int) -> int:
        """Bytes that `Operator.init_state(batch, max_length)` allocates in a dtype of `itemsize` bytes."""
        grown = self.cache_per_token * self.cached_tokens(max_length)
        return batch * (self.state * max(4, itemsize) + (self.buffer + grown) * itemsize)

    def flops(self, batch: int, context: int) -> int:
        """Floating-point operations of one decode step over `context` past tokens (a multiply-add counts two)."""
        return batch * (self.flops_per_token + self.flops_per_past_token * self.cached_tokens(context))

    def bytes_read(self, batch: int, context: int, itemsize: int) -> int:
        """Bytes one decode step must read: the weights once, and each sequence's state."""
        return self.parameters * itemsize + self.state_bytes(batch, context, itemsize)


@dataclass(frozen=True)
class OperatorSpec:
    """An operator as the notation and the search know it.

    `shape(width, **settings)` turns settings into the concrete sizes the module is built from, and raises ValueError
    where they do not fit the width; `cost(width, **shape)` prices those sizes. Where `free` is given, the operator
    takes settings of any other name too, and keeps each that is given.
    """

    name: str  # short, as printed
    long_name: str
    kind: str  # "mixer" mixes tokens, "ffn" does not
    module: str  # "package.module:Class", imported when a model is built
    settings: Mapping[str, Setting]
    shape: Callable[..., Shape]
    cost: Callable[..., Cost]
    free: Setting | None = None

    def setting(self, name: str) -> Setting | None:
        return self.settings.get(name, self.free)


def _divide(width: int, head_dim: int) -> int:
    if width % head_dim:
        raise ValueError(f"width {width} is not a multiple of head_dim {head_dim}")
    return width // head_dim


_CONV = Setting(4, "taps of the short causal convolutions")


# --- attention -------------------------------------------------------------------------------------------------------


def _attention_shape(
    width: int, head_dim: int, kv_heads: int | None, window: int | None, qk_norm: bool, rope_base: float
) -> Shape:
    heads = _divide(width, head_dim)
    if head_dim % 2:
        raise ValueError(f"head_dim {head_dim} is odd: rotary embedding turns pairs of values")
    if kv_heads is None:  # groups of four, as released; where four does not divide, the next larger group
        kv_heads = max(n for n in range(1, max(1, heads // 4) + 1) if heads % n == 0)
    if heads % kv_heads:
        raise ValueError(f"kv_heads {kv_heads} does not divide the {heads} heads of width {width}")
    return dict(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, window=window, qk_norm=qk_norm, rope_base=float(rope_base)
    )


def _attention_cost(
    width: int, heads: int, kv_heads: int, head_dim: int, window: int | None, qk_norm: bool, rope_base: float
) -> Cost:
    weights = 2 * width * heads * head_dim + 2 * width * kv_heads * head_dim
    return Cost(
        parameters=weights + (2 * head_dim if qk_norm else 0),
        cache_per_token=2 * kv_heads * head_dim,
        window=window,
        flops_per_token=2 * weights,
        flops_per_past_token=4 * heads * head_dim,
    )


# --- DeltaNet and Gated DeltaNet -------------------------------------------------------------------------------------


def _deltanet_shape(width: int, head_dim: int, conv: int) -> Shape:
    return dict(heads=_divide(width, head_dim), head_dim=head_dim, conv=conv)


def _deltanet_cost(width: int, heads: int, head_dim: int, conv: int) -> Cost:
    inner, state = heads * head_dim, heads * head_dim * head_dim
    weights = 4 * width * inner + width * heads
    return Cost(
        parameters=weights + 3 * inner * conv + head_dim,
        state=state,
        buffer=3 * inner * conv,
        flops_per_token=2 * weights + 6 * inner * conv + 6 * state,
    )


def _gated_deltanet_shape(width: int, head_dim: int, expand_v: int, conv: int) -> Shape:
    # The library default is a key dim of 0.75 width in heads of 256; the nearest whole number of heads is taken.
    heads = max(1, (3 * width + 2 * head_dim) // (4 * head_dim))
    return dict(heads=heads, key_dim=head_dim, value_dim=expand_v * head_dim, conv=conv)


def _gated_deltanet_cost(width: int, heads: int, key_dim: int, value_dim: int, conv: int) -> Cost:
    keys, values, state = heads * key_dim, heads * value_dim, heads * key_dim * value_dim
    weights = width * (2 * keys + 3 * values + 2 * heads)  # q k | v gate out | beta decay
    channels = 2 * keys + values
    return Cost(
        parameters=weights + channels * conv + 2 * heads + value_dim,
        state=state,
        buffer=channels * conv,
        flops_per_token=2 * weights + 2 * channels * conv + 7 * state,
    )


# --- gated linear attention ------------------------------------------------------------------------------------------

_GLA_RANK = 16


def _gla_shape(width: int, heads: int, expand_k: float, expand_v: float) -> Shape:
    keys, values = round(width * expand_k), round(width * expand_v)
    if keys % heads or values % heads or not keys or not values:
        raise ValueError(f"width {width} gives key dim {keys} and value dim {values}, not multiples of {heads} heads")
    return dict(heads=heads, key_dim=keys // heads, value_dim=values // heads, rank=_GLA_RANK)


def _gla_cost(width: int, heads: int, key_dim: int, value_dim: int, rank: int) -> Cost:
    keys, values, state = heads * key_dim, heads * value_dim, heads * key_dim * value_dim
    weights = width * (2 * keys + 3 * values + rank) + rank * keys  # q k | v gate out | low-rank decay
    return Cost(parameters=weights + keys + value_dim, state=state, flops_per_token=2 * weights + 5 * state)


# --- Mamba2 ----------------------------------------------------------------------------------------------------------


def _mamba2_shape(width: int, expand: int, head_dim: int, state: int, conv: int) -> Shape:
    return dict(heads=_divide(expand * width, head_dim), head_dim=head_dim, state=state, conv=conv)


def _mamba2_cost(width: int, heads: int, head_dim: int, state: int, conv: int) -> Cost:
    inner = heads * head_dim
    channels = inner + 2 * state  # x, B, C pass the convolution
    weights = width * (inner + channels + heads) + inner * width
    return Cost(
        parameters=weights + channels * (conv + 1) + 3 * heads + inner,
        state=inner * state,
        buffer=channels * conv,
        flops_per_token=2 * weights + 2 * channels * conv + 5 * inner * state,
    )


# --- feed-forward ----------------------------------------------------------------------------------------------------


def _ffn_shape(width: int, ratio: float, act: str) -> Shape:
    # As released: rounded down to a multiple of 128. Models narrower than 1024 round to 16, or little would be left.
    multiple = 128 if width >= 1024 else 16
    inner = int(ratio * width) // multiple * multiple
    if not inner:
        raise ValueError(f"ratio {ratio:g} of width {width} is less than {multiple}, the smallest inner size")
    return dict(inner=inner, act=act)


def _ffn_cost(width: int, inner: int, act: str) -> Cost:
    weights = (3 if act == "swiglu" else 2) * width * inner
    return Cost(parameters=weights, flops_per_token=2 * weights)


# --- layers of flash-linear-attention --------------------------------------------------------------------------------

_FLA_MODULE = "nfsearch.ops.fla_layers"  # knows the layers, and imports them


def _fla_shape(name: str, width: int, **settings: Value) -> Shape:
    return dict(layer=name, settings=settings)


def _fla_cost(width: int, layer: str, settings: Mapping[str, Value]) -> Cost:
    return importlib.import_module(_FLA_MODULE).cost(width, layer, settings)


@cache
def _fla_operator(name: str) -> OperatorSpec:
    """The operator `fla:LAYER`. Its settings are whatever the layer's constructor takes, which is known where the
    layer is built: a space is described without the package, and reads the same whichever version is installed."""
    return OperatorSpec(
        name=name,
        long_name=name,
        kind="mixer",
        module=f"{_FLA_MODULE}:FlaLayer",
        settings={},
        shape=partial(_fla_shape, name.removeprefix("fla:")),
        cost=_fla_cost,
        # no value equals NaN, so that each is kept
        free=Setting(math.nan, "an argument of the layer's constructor", type=object, optional=True),
    )


BUILT_IN = (
    OperatorSpec(
        name="A",
        long_name="attention",
        kind="mixer",
        module="nfsearch.ops.attention:Attention",
        settings={
            "head_dim": Setting(128, "size of a head"),
            "kv_heads": Setting(None, "key-value heads; none = a quarter of the heads", optional=True),
            "window": Setting(None, "how many positions are seen, the current one included; none = all", optional=True),
            "qk_norm": Setting(False, "RMS-normalise queries and keys per head", type=bool),
            "rope_base": Setting(10000.0, "base of the rotary angles", type=float),
        },
        shape=_attention_shape,
        cost=_attention_cost,
    ),
    OperatorSpec(
        name="D",
        long_name="deltanet",
        kind="mixer",
        module="nfsearch.ops.deltanet:DeltaNet",
        settings={"head_dim": Setting(128, "size of a head"), "conv": _CONV},
        shape=_deltanet_shape,
        cost=_deltanet_cost,
    ),
    OperatorSpec(
        name="GDN",
        long_name="gated_deltanet",
        kind="mixer",
        module="nfsearch.ops.gated_deltanet:GatedDeltaNet",
        settings={
            "head_dim": Setting(256, "key size of a head; there are 0.75 width / head_dim heads, rounded"),
            "expand_v": Setting(2, "value size of a head over its key size"),
            "conv": _CONV,
        },
        shape=_gated_deltanet_shape,
        cost=_gated_deltanet_cost,
    ),
    OperatorSpec(
        name="GLA",
        long_name="gated_linear_attention",
        kind="mixer",
        module="nfsearch.ops.gla:GatedLinearAttention",
        settings={
            "heads": Setting(4, "number of heads"),
            "expand_k": Setting(0.5, "key dim over width", type=float, minimum=1e-3),
            "expand_v": Setting(1.0, "value dim over width", type=float, minimum=1e-3),
        },
        shape=_gla_shape,
        cost=_gla_cost,
    ),
    OperatorSpec(
        name="M2",
        long_name="mamba2",
        kind="mixer",
        module="nfsearch.ops.mamba2:Mamba2",
        settings={
            "expand": Setting(2, "inner size over width"),
            "head_dim": Setting(64, "size of a head"),
            "state": Setting(128, "state size of each head"),
            "conv": _CONV,
        },
        shape=_mamba2_shape,
        cost=_mamba2_cost,
    ),
    OperatorSpec(
        name="F",
        long_name="ffn",
        kind="ffn",
        module="nfsearch.ops.ffn:FeedForward",
        settings={
            "ratio": Setting(3.0, "inner size over width", type=float, minimum=1e-3),
            "act": Setting("swiglu", "swiglu or relu2 (squared ReLU)", type=str, choices=("swiglu", "relu2")),
        },
        shape=_ffn_shape,
        cost=_ffn_cost,
    ),
)


@cache
def operators() -> Mapping[str, OperatorSpec]:
    """Every known operator by short name: the built-in ones, then those of other packages."""
    specs = {spec.name: spec for spec in BUILT_IN}
    for entry in entry_points(group="nfsearch.operators"):
        spec = entry.load()
        if spec.name in specs:
            raise ValueError(f"operator {spec.name} of {entry.value} is defined already")
        specs[spec.name] = spec
    return specs


@cache
def _by_any_name() -> Mapping[str, OperatorSpec]:
    return {name.lower(): spec for spec in operators().values() for name in (spec.name, spec.long_name)}


def find_operator(name: str) -> OperatorSpec | None:
    """The operator called `name` (short or long, in any case; `fla:LAYER` as the layer is spelt), or None."""
    if re.fullmatch(r"fla:[A-Za-z_]\w*", name):
        return _fla_operator(name)
    return _by_any_name().get(name.lower())


def operator_names() -> list[str]:
    """All names of all operators, short ones first."""
    specs = operators().values()
    return [spec.name for spec in specs] + [spec.long_name for spec in specs]
