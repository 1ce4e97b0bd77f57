from __future__ import annotations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfsearch.latency_lut.interpolation import neighbours, summed

GRIDS = st.lists(st.integers(0, 400), min_size=1, max_size=6, unique=True).map(sorted)


@given(GRIDS, st.data())
def test_the_sum_over_contexts_is_exact(grid: list[int], data: st.DataObject) -> None:
    first = data.draw(st.integers(grid[0], grid[-1]))
    last = data.draw(st.integers(first, grid[-1]))
    heights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(grid), max_size=len(grid)))
    function = dict(zip(grid, heights, strict=True))
    expected = numpy.interp(range(first, last + 1), grid, heights).sum()
    weights = summed(grid, first, last)
    assert sum(weight * function[point] for point, weight in weights.items()) == pytest.approx(expected)
    assert min(weights.values()) > 0
    assert sum(weights.values()) == pytest.approx(last - first + 1)


def test_on_a_point_only_that_point_counts() -> None:
    for point in (0, 5, 9):
        assert summed([0, 5, 9], point, point) == {point: 1.0}
        assert neighbours([0, 5, 9], point) == (point, point, 0.0)


def test_neighbours_are_on_a_logarithmic_axis() -> None:
    assert neighbours([10, 100, 1000, 9999], 316) == (100, 1000, pytest.approx(0.5, abs=1e-3))
