from __future__ import annotations

import math

import numpy as np
import pytest

from nfsearch.proxies.extrapolation import fit_power_law

BUDGETS = [1e6, 2e6, 4e6, 8e6, 16e6]


def law(tokens: float) -> float:
    return 3.1 + 1.2 * (tokens / 1e6) ** -0.4


def test_a_law_is_found_again() -> None:
    found = fit_power_law(BUDGETS, [law(tokens) for tokens in BUDGETS])
    assert found.floor == pytest.approx(3.1, abs=1e-3)
    assert found.exponent == pytest.approx(0.4, abs=1e-3)
    assert found.at(80e6).value == pytest.approx(law(80e6), abs=1e-4)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    tokens = np.linspace(1e6, 10e6, 30)
    clean = np.array([law(each) for each in tokens])
    inside = 0
    for _ in range(100):
        found = fit_power_law(tokens.tolist(), (clean + rng.normal(0, 0.005, 30)).tolist()).at(20e6)
        inside += abs(found.value - law(20e6)) <= found.error
    assert 85 <= inside <= 100


def test_three_points_leave_no_error_to_tell() -> None:
    found = fit_power_law(BUDGETS[:3], [law(tokens) for tokens in BUDGETS[:3]]).at(16e6)
    assert found.value == pytest.approx(law(16e6), abs=1e-2)
    assert math.isinf(found.error)


def test_too_few_points_and_infinite_losses_are_refused() -> None:
    with pytest.raises(ValueError, match="needs losses at 3 budgets, not 2"):
        fit_power_law([1e6, 2e6, 2e6], [3.0, 2.9, 2.9])
    with pytest.raises(ValueError, match="is not finite"):
        fit_power_law(BUDGETS[:3], [3.0, math.inf, 2.0])
