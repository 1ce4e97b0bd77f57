"""How well estimates agree with measurements."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field


class Agreement(BaseModel):
    """Estimates against measurements; errors are fractions of what was measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    models: int
    mape: float = Field(description="mean absolute error")
    bias: float = Field(description="mean error; positive: estimates are too high")
    worst: float = Field(description="the largest error, with its sign")
    spearman: float | None = Field(description="rank correlation; null for fewer than three models")
    kendall: float | None = Field(description="likewise")


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
