"""The records that describe an operator: its settings, its cost, and both together with its names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Value = int | float | bool | str | None
Shape = dict[str, Any]
LARGEST = 2**20  # width, size of anything in a model, setting of an operator


@dataclass(frozen=True)
class Setting:
    """One setting of an operator: its default, what it may be, and what it means."""

    default: Value
    help: str
    type: type = int
    optional: bool = False  # `none` is allowed
    choices: tuple[Value, ...] | None = None
    minimum: float = 1
    maximum: float = LARGEST

    def expected(self) -> str:
        """What a valid value looks like, in words."""
        if self.choices is not None:
            return "one of " + ", ".join(str(c).lower() if isinstance(c, bool) else str(c) for c in self.choices)
        if self.type is bool:
            return "true or false"
        if self.type is object:
            return "a number, true, false, none or a word"
        words = {int: "a whole number", float: "a number"}[self.type] + f" from {self.minimum:g} to {self.maximum:,.0f}"
        return words + (" or none" if self.optional else "")

    def accepts(self, value: Value) -> bool:
        if value is None:
            return self.optional
        if self.choices is not None:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        if self.type is object:
            return _can_be_written(value)
        if self.type is bool or isinstance(value, bool):
            return self.type is bool and isinstance(value, bool)
        kinds = (int, float) if self.type is float else (int,)
        return isinstance(value, kinds) and self.minimum <= value <= self.maximum

    def normal(self, value: Value) -> Value:
        """An accepted value in the one form in which it is kept: 2 and 2.0 are the same."""
        if self.type is float and value is not None:
            return float(value)
        return int(value) if self.type is object and isinstance(value, float) and value.is_integer() else value


def _can_be_written(value: Value) -> bool:
    """Whether the notation has a text that reads back as this value."""
    if isinstance(value, str):
        return re.fullmatch(r"[A-Za-z_][\w:]*", value) is not None and value not in ("none", "true", "false")
    return value is None or abs(value) < 2**63  # which is true of no NaN


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
