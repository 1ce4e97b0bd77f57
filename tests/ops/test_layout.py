"""The rows of a projection, by name."""

from __future__ import annotations

import pytest
import torch

from nfsearch.ops import Layout, build_operator
from nfsearch.space import Layer

LAYOUT = Layout.of(q=2, k=3, v=4, gate=5)


def test_parts_and_groups_stand_where_they_are_cut() -> None:
    x = torch.arange(LAYOUT.total)
    for names in (("q", "k", "v", "gate"), ("q|k|v", "gate"), ("q", "k|v|gate")):
        for name, part in zip(names, LAYOUT.split(x, *names), strict=True):
            assert part.tolist() == list(range(LAYOUT.start(name), LAYOUT.start(name) + LAYOUT.size(name)))
    assert [len(part) for part in LAYOUT.split(x)] == list(LAYOUT.sizes) == [2, 3, 4, 5]


def test_groups_that_are_not_all_rows_are_an_error() -> None:
    with pytest.raises(RuntimeError):
        LAYOUT.split(torch.arange(LAYOUT.total), "q", "v")


@pytest.mark.parametrize("name", ["A", "C", "D", "F", "GDN", "GLA", "M2"])
def test_an_operators_layout_is_that_of_its_projection(name: str) -> None:
    operator = build_operator(Layer.of(name), 256)
    projection = {"A": "qkv", "F": "gate_up"}.get(name, "in_proj")
    assert operator.layout.total == operator.get_submodule(projection).out_features
