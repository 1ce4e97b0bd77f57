"""How well scores order architectures, against losses that are taken to be true.

Lower is better in scores and losses alike. Intervals are 95 % percentile intervals of a bootstrap over architectures.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

RESAMPLES = 1000
_AT_ONCE = 4_000_000  # pairs of architectures
_FEWEST = 4  # architectures, for an interval


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its interval, not a number where there are too few architectures."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def spearman(scores: np.ndarray, truth: np.ndarray) -> Interval:
    """Correlation of the ranks. [architectures] each; an infinite score comes last."""
    return _bootstrapped(_rank_correlation, scores, truth)


def kendall(scores: np.ndarray, truth: np.ndarray) -> Interval:
    """Kendall's tau-b: pairs ordered alike minus those ordered otherwise, as a share."""
    return _bootstrapped(_pair_correlation, scores, truth)


def partial(scores: np.ndarray, truth: np.ndarray, given: np.ndarray) -> Interval:
    """Correlation of the ranks that is left when that of both with `given` is taken out."""
    return _bootstrapped(_partial_correlation, scores, truth, given)


def _rank_correlation(x: np.ndarray, y: np.ndarray, axis: int = -1) -> Any:
    from scipy.stats import pearsonr, rankdata

    return pearsonr(rankdata(x, axis=axis), rankdata(y, axis=axis), axis=axis).statistic


def _pair_correlation(x: np.ndarray, y: np.ndarray, axis: int = -1) -> Any:
    """`scipy.stats.kendalltau` of many samples at once, [samples, architectures] each: that takes one at a time, and a
    hundred times as long."""
    from scipy.stats import rankdata

    a, b = (rankdata(each, axis=-1) for each in (x, y))  # differences of infinite scores would be no numbers
    a, b = (np.sign(each[..., :, None] - each[..., None, :]) for each in (a, b))
    pairs = (-2, -1)
    return (a * b).sum(pairs) / np.sqrt((a * a).sum(pairs) * (b * b).sum(pairs))


def _partial_correlation(x: np.ndarray, y: np.ndarray, z: np.ndarray, axis: int = -1) -> Any:
    xy, xz, yz = (_rank_correlation(a, b, axis) for a, b in ((x, y), (x, z), (y, z)))
    with np.errstate(divide="ignore", invalid="ignore"):
        return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def _bootstrapped(statistic: Callable[..., Any], *samples: np.ndarray) -> Interval:
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of samples whose values are all equal, which have no correlation
        value = float(statistic(*samples))
        if len(samples[0]) < _FEWEST:
            return Interval(value, float("nan"), float("nan"))
        found = bootstrap(
            samples,
            statistic,
            paired=True,
            vectorized=True,
            batch=max(1, _AT_ONCE // len(samples[0]) ** 2),
            n_resamples=RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        )
        low, high = np.nanpercentile(found.bootstrap_distribution, [2.5, 97.5])
    return Interval(value, float(low), float(high))


@dataclass(frozen=True)
class Regret:
    """How much worse than the true best a choice is, in nats: among all architectures, which is one case, and among
    half of them, the mean over random halves."""

    of_all: float
    of_half: float


def regret(scores: np.ndarray, truth: np.ndarray, first: int) -> Regret:
    """Of the choice of the true best among the `first` ones by the scores. [architectures] each."""
    shuffled = np.argsort(np.random.default_rng(0).random((RESAMPLES, len(scores))), axis=1)
    halves = shuffled[:, : max(1, len(scores) // 2)]  # [halves, architectures]
    return Regret(float(_regret(scores, truth, first)), float(np.mean(_regret(scores[halves], truth[halves], first))))


def _regret(scores: np.ndarray, truth: np.ndarray, first: int) -> Any:
    chosen = np.argsort(scores, axis=-1, kind="stable")[..., :first]
    return np.take_along_axis(truth, chosen, -1).min(-1) - truth.min(-1)


def rank_errors(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How much further down each is placed than it belongs, as a share of the list: below 0 it is favoured."""
    from scipy.stats import rankdata

    return (rankdata(scores) - rankdata(truth)) / len(truth)


def mean_error(errors: np.ndarray, weights: np.ndarray) -> Interval:
    """Of architectures, each as much as its weight says. [architectures] each."""

    def mean(errors: np.ndarray, weights: np.ndarray, axis: int = -1) -> Any:
        with np.errstate(divide="ignore", invalid="ignore"):  # of a sample without any weight
            return (errors * weights).sum(axis) / weights.sum(axis)

    return _bootstrapped(mean, errors, weights)


def seed_spread(losses: pd.DataFrame) -> float | None:
    """Standard deviation over seeds, pooled over architectures, as if it were alike for all. [architectures, seeds]
    with what lacks not a number; None where none has two seeds."""
    finite = losses.replace(np.inf, np.nan)
    freedom = (finite.count(axis=1) - 1).clip(lower=0)
    if not freedom.sum():
        return None
    squares = finite.sub(finite.mean(axis=1), axis=0).pow(2).sum(axis=1)
    return float(np.sqrt(squares.sum() / freedom.sum()))


def across_seeds(losses: pd.DataFrame, truth: pd.DataFrame) -> float | None:
    """Mean rank correlation of losses of one seed with true ones of another: where the short training is the beginning
    of the long one, their common seed alone makes them agree. [architectures, seeds] each; None where fewer than four
    architectures have two seeds."""
    found = []
    for seed in losses.columns:
        for other in truth.columns.difference([seed]):
            pair = pd.concat([losses[seed], truth[other]], axis=1).dropna()
            if len(pair) >= _FEWEST:
                found.append(float(_rank_correlation(pair.iloc[:, 0].to_numpy(), pair.iloc[:, 1].to_numpy())))
    return float(np.mean(found)) if found else None
