"""How well estimates agree with measurements."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from nfsearch.support.settings import Settings


class Agreement(BaseModel):
    """Estimates against measurements; errors are fractions of what was measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: int
    mape: float = Field(description="mean absolute error")
    bias: float = Field(description="mean error; positive: estimates are too high")
    worst: float = Field(description="the largest error, with its sign")
    spearman: float | None = Field(description="rank correlation; null for fewer than three models")
    kendall: float | None = Field(description="likewise")


class Trust(Settings):
    """When the estimates of a table are good enough to be trusted."""

    mape: float = Field(default=0.10, gt=0, description="mean absolute error at most, a share")
    spearman: float = Field(default=0.9, ge=-1, le=1, description="rank correlation at least")

    def complaints(self, name: str, found: Agreement) -> list[str]:
        """What is bad about the agreement of the workload `name`, in words; nothing for a good one."""
        bad = []
        if not found.mape <= self.mape:
            bad.append(f"{name}: estimates are {found.mape:.1%} off on average, more than {self.mape:.0%}")
        if found.spearman is not None and not found.spearman >= self.spearman:
            words = f"Spearman's rho {found.spearman:.2f}, less than {self.spearman:g}"
            bad.append(f"{name}: estimates do not put models in their order ({words})")
        return bad


@dataclass(frozen=True)
class Doubt:
    """How far measurements of whole models lie from their estimates, as shares of the estimates."""

    bias: float  # mean of measured / estimated - 1
    residual: float  # standard deviation of the same around that mean

    def bar(self, value: float, noise: float) -> float:
        """The half width of an estimate's error bar, about a 95 % interval of what would be measured:

            |bias| x value + sqrt(noise^2 + (2 x residual x value)^2)

        `noise` is twice the standard error that the rows of the table leave in their sum. The estimate itself is not
        corrected. What the rows add to the residuals is counted twice, which errs on the side of a longer bar.
        """
        return abs(self.bias) * value + math.hypot(noise, 2 * self.residual * value)


def doubt_of(pairs: Sequence[tuple[float, float]]) -> Doubt:
    """Of (estimated, measured) pairs, at least one; the residual of a lone one is not known and taken to be its
    bias."""
    shares = [measured / estimated - 1 for estimated, measured in pairs]
    bias = statistics.fmean(shares)
    return Doubt(bias, statistics.stdev(shares) if len(shares) > 1 else abs(bias))


def agreement_of(pairs: Sequence[tuple[float, float]]) -> Agreement:
    """Of (estimated, measured) pairs."""
    from scipy import stats

    errors = [estimated / measured - 1 for estimated, measured in pairs]
    estimates, measurements = zip(*pairs, strict=True)
    ranked = len(pairs) >= 3 and len(set(estimates)) > 1 and len(set(measurements)) > 1
    return Agreement(
        models=len(pairs),
        mape=sum(map(abs, errors)) / len(errors),
        bias=sum(errors) / len(errors),
        worst=max(errors, key=abs),
        spearman=float(stats.spearmanr(estimates, measurements).statistic) if ranked else None,
        kendall=float(stats.kendalltau(estimates, measurements).statistic) if ranked else None,
    )
