"""Metrics: what a candidate is measured by, in which unit, and how people read it. Smaller is better for all of them.

This is the one place of units and their factors: the limits of a config, objectives, tables, plots and pages read them
here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

Z_95 = 1.96  # standard deviations of a 95 % interval
RATE = "tokens_per_s"  # a limit from below, in the place of a time


@dataclass(frozen=True)
class Unit:
    """A unit that values are kept in, and the one that people read.

    `limits` holds the units that a limit of a config may be given in, each as so many of `name`; the name "" stands for
    a limit without a unit."""

    name: str
    shown: str
    scale: float  # times a value gives what is shown
    places: int | None = None  # digits after the point where they are fixed; else so many digits count as are asked for
    limits: Mapping[str, float] = field(default_factory=dict)

    def text(self, value: float, digits: int = 4) -> str:
        """The value as it is shown, without the unit: so many digits that count, all of those before the point, and no
        exponent."""
        value *= self.scale
        if self.places is not None:
            return f"{value:.{self.places}f}"
        if 0 < abs(value) < 1e-4:  # where `g` turns to exponents
            return f"{value:.{digits - 1 - math.floor(math.log10(abs(value)))}f}"
        return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"

    def words(self, value: float, digits: int = 4) -> str:
        """The value as it is shown, with the unit."""
        return f"{self.text(value, digits)} {self.shown}".rstrip()


SECONDS = Unit("seconds", "ms", 1e3, limits={"us": 1e-6, "ms": 1e-3, "s": 1.0})
BYTES = Unit("bytes", "GB", 1e-9, limits={"mb": 1e6, "gb": 1e9})
JOULES = Unit("joules", "mJ", 1e3, limits={"mj": 1e-3, "j": 1.0})
NATS = Unit("nats per token", "nats", 1.0, places=4, limits={"": 1.0})
COUNT = Unit("", "M", 1e-6, limits={"": 1.0, "m": 1e6, "b": 1e9})
NUMBER = Unit("", "", 1.0, limits={"": 1.0})


@dataclass(frozen=True)
class Metric:
    """Something that a candidate is measured by: its name and unit; `tokens` is how many of them a time is spent on,
    where it may be limited as a rate."""

    name: str
    unit: Unit = NUMBER
    tokens: int | None = None

    @property
    def label(self) -> str:
        """The name with the unit that is shown, as a plot's axis has it."""
        return f"{self.name} ({self.unit.shown})" if self.unit.shown and self.unit.shown != self.name else self.name

    @property
    def column(self) -> str:
        """The name with the unit that is shown, as a file's column has it: `tpot_ms`."""
        unit = self.unit.shown.lower()
        return f"{self.name}_{unit}" if unit and unit in self.unit.limits else self.name

    @property
    def limit_units(self) -> tuple[str, ...]:
        """The units that a limit on it may be given in."""
        return (*self.unit.limits, *((RATE,) if self.tokens else ()))

    def limit(self, value: float, unit: str) -> float:
        """The most that a limit of `value` in one of `limit_units` allows."""
        return self.tokens / value if unit == RATE and self.tokens else value * self.unit.limits[unit]


@dataclass(frozen=True)
class Measurement:
    """A value of a metric, in its unit, and the half width of its error bar (0 where it is exact or not known)."""

    value: float
    error: float = 0.0


Measurements = Mapping[str, Measurement]  # by the name of the metric
