"""Folding repeats: against every text there is, in the order in which the shortest is chosen; and in time."""

from __future__ import annotations

import time
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsearch.space.folding import folded


def plainly(words: list[str]) -> str:
    """The shortest text of every run of words: from its two parts, however it is split, or folded whole."""
    count = len(words)
    texts = [[""] * (count + 1) for _ in range(count + 1)]
    for size in range(1, count + 1):
        for i in range(count - size + 1):
            j = i + size
            splits = (f"{texts[i][k]} {texts[k][j]}" for k in range(i + 1, j))
            best = words[i] if size == 1 else min(splits, key=len)
            for period in range(1, size // 2 + 1):
                if size % period == 0 and words[i : j - period] == words[i + period : j]:
                    body = texts[i][i + period]
                    fold = f"{body}{{{size}}}" if period == 1 else f"({body}){{{size // period}}}"
                    best = min(fold, best, key=len)  # folded where both are as short
            texts[i][j] = best
    return texts[0][count]


@pytest.mark.parametrize("words", [("A", "B"), ("A", "LONG")])
def test_all_short_sequences(words: tuple[str, str]) -> None:
    for size in range(9):
        for sequence in product(words, repeat=size):
            assert folded(sequence) == plainly(list(sequence))


repeated = st.recursive(
    st.lists(st.sampled_from(["A", "B", "CC", "LONGER"]), min_size=1, max_size=3),
    lambda inner: st.one_of(
        st.builds(lambda words, n: words * n, inner, st.integers(2, 11)),
        st.builds(list.__add__, inner, inner),
        st.builds(lambda words, other, n: words + other * n, inner, inner, st.integers(2, 4)),
    ),
    max_leaves=4,
).map(lambda words: words[:70])


@settings(max_examples=60)
@given(repeated)
def test_repeats_in_repeats(words: list[str]) -> None:
    assert folded(words) == plainly(words)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["D"] * 2000, "D{2000}"),
        (["D", "F"] * 1000, "(D F){1000}"),
        ((["D", "F"] * 22 + ["A"]) * 44, "((D F){22} A){44}"),
    ],
)
def test_as_many_layers_as_a_model_may_have(words: list[str], text: str) -> None:
    began = time.process_time()
    assert folded(words) == text
    assert time.process_time() - began < 8  # below one; the plain way takes minutes
