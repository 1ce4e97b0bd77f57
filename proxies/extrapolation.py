"""Where a loss is going: a power law through the losses at several budgets, and what it says of a longer training.

loss = floor + scale * (tokens / unit)^-exponent, the form that losses follow over tokens at a fixed model (Kaplan et
al., arXiv 2001.08361; Hoffmann et al., arXiv 2203.15556).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nfsearch.support.metrics import Measurement

LEAST_POINTS = 3  # there are as many unknowns
_EXPONENTS = (0.02, 3.0)  # what may come of a fit


@dataclass(frozen=True)
class PowerLaw:
    """`covariance` is that of (floor, scale, exponent), [3, 3]; `freedom` counts the points beyond the unknowns: where
    there are none, nothing tells the covariance."""

    floor: float
    scale: float
    exponent: float
    unit: float  # tokens
    covariance: np.ndarray
    freedom: int

    def at(self, tokens: float) -> Measurement:
        """The loss after so many tokens in nats, and the half width of its 95 % interval: of the noise about the law,
        not of another law's being the right one. Infinite where three points alone were given."""
        from scipy.special import stdtrit

        x = tokens / self.unit
        power = x**-self.exponent
        value = self.floor + self.scale * power
        if not self.freedom:
            return Measurement(value, math.inf)
        slope = np.array([1.0, power, -self.scale * power * math.log(x)])
        error = math.sqrt(max(0.0, float(slope @ self.covariance @ slope)))
        return Measurement(value, float(stdtrit(self.freedom, 0.975)) * error)


def fit_power_law(tokens: Sequence[float], losses: Sequence[float]) -> PowerLaw:
    """The law nearest to the losses (in nats, least squares), floor and scale at least 0. Raises ValueError for fewer
    than three budgets, or losses that are not finite."""
    if len(set(tokens)) < LEAST_POINTS:
        raise ValueError(f"a power law needs losses at {LEAST_POINTS} budgets, not {len(set(tokens))}")
    from scipy.optimize import minimize_scalar, nnls

    unit = float(tokens[-1])
    x, y = np.asarray(tokens, float) / unit, np.asarray(losses, float)
    if not np.isfinite(y).all():
        raise ValueError("a loss is not finite")

    def linear(exponent: float) -> tuple[np.ndarray, float]:
        """Floor and scale that are best with an exponent, and what they leave: the law is linear in both."""
        found, left = nnls(np.stack([np.ones_like(x), x**-exponent], axis=1), y)
        return found, float(left)

    best = minimize_scalar(lambda log: linear(math.exp(log))[1], bounds=np.log(_EXPONENTS), method="bounded")
    exponent = math.exp(best.x)
    (floor, scale), left = linear(exponent)
    freedom = len(y) - LEAST_POINTS
    slopes = np.stack([np.ones_like(x), x**-exponent, -scale * x**-exponent * np.log(x)], axis=1)
    covariance = np.linalg.pinv(slopes.T @ slopes) * (left**2 / max(1, freedom))
    return PowerLaw(float(floor), float(scale), exponent, unit, covariance, freedom)
