from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfsearch.search.pareto import front, hypervolume, reference_point

points = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12)


@given(points)
def test_front_is_what_nothing_dominates(table: list[tuple[int, int]]) -> None:
    def dominates(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    assert front(table).tolist() == [not any(dominates(other, point) for other in table) for point in table]


@given(points)
def test_hypervolume_counts_the_dominated_cells(table: list[tuple[int, int]]) -> None:
    cells = sum(any(x <= i and y <= j for x, y in table) for i in range(7) for j in range(7))
    assert hypervolume(table, [7, 7]) == pytest.approx(cells)


def test_nothing_has_no_front_and_no_volume() -> None:
    assert front(np.empty((0, 2))).tolist() == []
    assert hypervolume(np.empty((0, 2)), [1, 1]) == 0


def test_reference_is_the_budget_or_the_worst_of_the_first_population() -> None:
    table = [[1.0, 5.0], [3.0, 4.0], [9.0, 1.0]]
    assert reference_point(table, [None, 6.0], first=2).tolist() == pytest.approx([3.2, 6.0])
    assert reference_point(table).tolist() == pytest.approx([9.8, 5.4])
    assert reference_point([[2.0, 2.0]]).tolist() == pytest.approx([2.2, 2.2])
