"""How well estimates agree with measurements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Errors are fractions of what was measured. The rank correlations are None for fewer than three models."""

    models: int
    mape: float  # mean absolute error
    bias: float  # mean error; positive: the estimates say too much
    worst: float  # the largest error, with its sign
    spearman: float | None
    kendall: float | None


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
