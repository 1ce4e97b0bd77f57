"""Figures of agreement on made-up data whose answers are known."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from nfsearch.studies import agreement
from nfsearch.studies.agreement import (
    across_seeds,
    kendall,
    mean_error,
    partial,
    rank_errors,
    regret,
    seed_spread,
    spearman,
)

RNG = np.random.default_rng(1)
TRUTH = RNG.normal(size=40)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "RESAMPLES", 200)


def test_the_same_order_is_1_and_the_opposite_minus_1() -> None:
    for measure in (spearman, kendall):
        assert (found := measure(np.exp(TRUTH), TRUTH)).value == pytest.approx(1.0)
        assert found.low == pytest.approx(1.0)
        assert measure(-TRUTH, TRUTH).value == pytest.approx(-1.0)


def test_correlations_are_scipys_and_lie_in_their_intervals() -> None:
    scores = TRUTH + RNG.normal(size=40)
    for measure, right in ((spearman, stats.spearmanr), (kendall, stats.kendalltau)):
        found = measure(scores, TRUTH)
        assert found.value == pytest.approx(right(scores, TRUTH).statistic)
        assert found.low < found.value < found.high
        assert 0.1 < found.high - found.low < 0.7


def test_where_all_diverged_nothing_is_known_and_nobody_is_warned() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = kendall(np.full(10, math.inf), np.arange(10.0))
    assert np.isnan([found.value, found.low, found.high]).all()


def test_a_score_that_diverged_comes_last() -> None:
    truth = np.arange(10.0)
    scores = truth.copy()
    scores[9] = math.inf
    assert spearman(scores, truth).value == pytest.approx(1.0)
    scores[0] = math.inf
    assert spearman(scores, truth).value < 0.7


def test_what_goes_by_size_alone_has_no_partial_correlation() -> None:
    sizes = RNG.normal(size=400)
    truth, blind = sizes + RNG.normal(size=400), sizes + RNG.normal(size=400)
    assert spearman(blind, truth).value > 0.4
    found = partial(blind, truth, sizes)
    assert abs(found.value) < 0.12
    assert found.low < 0 < found.high
    assert partial(truth + 0.1 * RNG.normal(size=400), truth, sizes).value > 0.9


def test_regret_is_how_much_worse_the_choice_is() -> None:
    truth = np.array([3.0, 3.1, 3.5, 4.0])
    assert regret(np.array([2.0, 1.0, 3.0, 4.0]), truth, 1).of_all == pytest.approx(0.1)
    assert regret(np.array([4.0, 3.0, 2.0, 1.0]), truth, 1).of_all == pytest.approx(1.0)
    assert regret(np.array([4.0, 3.0, 2.0, 1.0]), truth, 3).of_all == pytest.approx(0.1)


def test_regret_among_half_is_the_mean_over_halves() -> None:
    truth = np.arange(4.0)
    assert regret(truth, truth, 1).of_half == 0
    pairs = (1 + 2 + 3 + 1 + 2 + 1) / 6  # of any two the worse one is chosen
    assert regret(-truth, truth, 1).of_half == pytest.approx(pairs, abs=0.2)
    assert regret(-truth, truth, 2).of_half == 0
    assert regret(np.array([1.0]), np.array([3.0]), 1).of_half == 0


def test_a_favourite_has_a_rank_error_below_0() -> None:
    truth, having = np.arange(40.0), np.arange(40) % 2
    errors = rank_errors(truth - 8 * having, truth)
    assert errors.mean() == pytest.approx(0, abs=1e-9)
    favourite, other = mean_error(errors, having.astype(float)), mean_error(errors, 1.0 - having)
    assert favourite.value == pytest.approx(-other.value)
    assert favourite.high < -0.05 < 0.05 < other.low
    assert favourite.value == pytest.approx(-4 / 40, abs=0.02)


def test_the_spread_of_seeds_is_pooled() -> None:
    losses = pd.DataFrame([[1.0, 1.2], [3.0, 3.0], [5.0, np.nan]])
    assert seed_spread(losses) == pytest.approx(math.sqrt((2 * 0.1**2 + 0) / 2))
    assert seed_spread(losses.iloc[:, :1]) is None
    losses.iloc[1, 1] = np.inf
    assert seed_spread(losses) == pytest.approx(math.sqrt(2 * 0.1**2))


def test_a_common_seed_alone_makes_no_agreement_across_seeds() -> None:
    quality, noise = RNG.normal(size=(60, 1)), RNG.normal(size=(60, 3))
    short, long = pd.DataFrame(noise), pd.DataFrame(0.1 * quality + noise)
    assert spearman(short[0].to_numpy(), long[0].to_numpy()).value > 0.9
    found = across_seeds(short, long)
    assert found is not None
    assert abs(found) < 0.25
    assert across_seeds(short[[0]], long[[0]]) is None
