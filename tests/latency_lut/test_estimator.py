"""Estimates from rows that were measured in several places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsearch.latency_lut import LatencyTable, OutOfMemory, TableError, Workload, keys_for
from nfsearch.latency_lut.keys import BETWEEN, CACHES, RESIDENT, STREAMED
from nfsearch.latency_lut.places import touched_by_ends, touched_by_layer
from nfsearch.space.architecture import Architecture

from .helpers import made_up_row, made_up_table, small_space

W = Workload(context=100)
KEYS = keys_for(small_space((32,)), {"tpot": W}, "float32")
ATTENTION = next(key for key in KEYS if key.block == "A[head_dim=16]")
Place = tuple[int, str]


def mixed(count: int) -> Architecture:
    """Twice attention, and so many FFNs after each."""
    return Architecture.parse(
        f"(A[head_dim=16] F{{{count}}}){{2}}" if count else "A[head_dim=16]{2}", width=32, vocab=64
    )


def touched(model: Architecture) -> float:
    """Bytes of a decode step."""
    layers = sum(touched_by_layer(layer, 32, 1, 100, 4) for layer in model.layers)
    return layers + touched_by_ends(32, model.vocab, 0, 4)


def between(model: Architecture) -> float:
    """Bytes that other layers touch between one layer of attention and the next."""
    return sum(touched_by_layer(layer, 32, 1, 100, 4) for layer in model.layers if layer.op == "F") / 2


def table_of(rows: Iterable[tuple[Place, float, float, float]]) -> LatencyTable:
    """Attention in several places: (place, milliseconds, bytes touched, bytes between). All else takes 1 ms."""
    table = LatencyTable(made_up_table([]).provenance)
    for key in KEYS:
        if key != ATTENTION:
            table.add(made_up_row(key))
    for place, ms, bytes_of, apart in rows:
        row = made_up_row(ATTENTION.placed(*place), ms, working_set_mb=bytes_of / 1e6, between_mb=apart / 1e6)
        table.add(row)
    return table


def attention_ms(table: LatencyTable, model: Architecture) -> float:
    """Of one layer."""
    return 1e3 * table.breakdown(model, W)["A[head_dim=16]"] / 2


def by_bytes_between() -> LatencyTable:
    """1 ms alone, 3 ms with two FFNs between, 4 ms with six; all in models of the same size."""
    rows = [((others, STREAMED), ms, 1e6, between(mixed(n))) for others, ms, n in ((0, 1, 0), (1, 3, 2), (7, 4, 6))]
    return table_of(rows)


def by_bytes_touched() -> LatencyTable:
    """1 ms in the smallest model, 2 ms in one of four FFNs, 4 ms in one of sixteen, always alone."""
    rows = [
        ((0, cache), ms, touched(mixed(n)), 0.0) for cache, ms, n in zip(CACHES, (1, 2, 4), (0, 2, 8), strict=False)
    ]
    return table_of(rows)


@pytest.mark.parametrize(("count", "ms"), [(0, 1.0), (2, 3.0), (6, 4.0)])
def test_in_a_rows_own_place_the_estimate_is_its_value(count: int, ms: float) -> None:
    assert attention_ms(by_bytes_between(), mixed(count)) == pytest.approx(ms)


@pytest.mark.parametrize(("count", "ms"), [(0, 1.0), (2, 2.0), (8, 4.0)])
def test_in_a_model_as_large_as_a_rows_the_estimate_is_its_value(count: int, ms: float) -> None:
    assert attention_ms(by_bytes_touched(), mixed(count)) == pytest.approx(ms)


@pytest.mark.parametrize("table", [by_bytes_between(), by_bytes_touched()])
def test_between_places_estimates_rise_from_one_to_the_other_and_stay_beyond(table: LatencyTable) -> None:
    times = [attention_ms(table, mixed(count)) for count in range(12)]
    assert times == sorted(times)
    assert 1.0 < times[1] < times[2] < times[3] < times[5]
    assert times[-1] == times[-2] == pytest.approx(4.0)  # the last row's: nothing is carried beyond it


def test_below_the_first_place_an_estimate_is_the_first_rows() -> None:
    table = table_of([((1, STREAMED), 3.0, 1e6, between(mixed(4))), ((7, STREAMED), 5.0, 1e6, between(mixed(8)))])
    assert attention_ms(table, mixed(0)) == attention_ms(table, mixed(3)) == 3.0
    table = table_of([((0, BETWEEN), 2.0, 1e6, 0.0), ((0, STREAMED), 7.0, 3e6, 0.0)])
    assert attention_ms(table, mixed(0)) == 2.0


def test_a_chain_of_one_kind_is_what_was_measured_without_others() -> None:
    for count in (1, 2, 7):
        model = Architecture.parse(f"A[head_dim=16]{{{count}}}", width=32, vocab=64)
        parts = by_bytes_between().breakdown(model, W)
        assert parts["A[head_dim=16]"] == pytest.approx(count * 1e-3)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from((0, 1, 7)), st.sampled_from(CACHES)),
        st.tuples(st.floats(0.1, 10), st.floats(1e3, 1e7)),
        min_size=1,
    ),
    st.integers(0, 12),
)
def test_an_estimate_lies_within_the_rows(places: dict[Place, tuple[float, float]], count: int) -> None:
    table = table_of((place, ms, size, 1e5 * place[0]) for place, (ms, size) in places.items())
    times = [ms for ms, _ in places.values()]
    assert min(times) * (1 - 1e-9) <= attention_ms(table, mixed(count)) <= max(times) * (1 + 1e-9)


def test_errors_and_energy_are_taken_between_places_too() -> None:
    near, far = made_up_row(ATTENTION.placed(0, RESIDENT)), made_up_row(ATTENTION.placed(0, STREAMED))
    assert near.error_ms == far.error_ms
    table = by_bytes_touched()
    for model in (mixed(0), mixed(1), mixed(30)):
        assert table.estimate(model, W).joules == pytest.approx(400 * table.estimate(model, W).seconds)
    one, between_both = (table.estimate(mixed(count), W).error for count in (0, 1))
    assert one == pytest.approx(2e-3 * near.error_ms * 5**0.5)  # two layers of the same row, and the ends
    assert between_both == pytest.approx(2e-3 * near.error_ms * (5 + 2**2) ** 0.5)


WORKLOADS = {
    "tpot": W,
    "story": Workload(phase="generation", prompt=9, tokens=3000),
    "serving": Workload(phase="throughput", context=100, batches=(1, 4), memory_gb=1),
}


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_a_breakdown_adds_up_to_the_estimate(name: str) -> None:
    keys = keys_for(small_space((32,)), WORKLOADS, "float32")
    table = LatencyTable(made_up_table([]).provenance)
    number = 0
    for key in keys:
        for others, cache in ((0, RESIDENT), (0, STREAMED), (1, STREAMED), (7, STREAMED)):
            if key.is_end and others:
                continue
            number += 1
            size = {RESIDENT: 0.03, STREAMED: 0.3}[cache]
            row = made_up_row(key.placed(others, cache), 1.0 + number % 7, working_set_mb=size, between_mb=others / 50)
            table.add(row)
    model = Architecture.parse("(A[head_dim=16] F D[head_dim=16] A[head_dim=16,window=8]){2} F", width=32, vocab=64)
    parts = table.breakdown(model, WORKLOADS[name])
    assert set(parts) == {"ends", "F", "D[head_dim=16]", "A[head_dim=16]", "A[head_dim=16,window=8]"}
    assert sum(parts.values()) == pytest.approx(table.estimate(model, WORKLOADS[name]).seconds)


def test_a_head_of_its_own_takes_no_longer_and_more_memory() -> None:
    table, tied = by_bytes_touched(), mixed(2)
    own = replace(tied, tied_head=False)
    assert table.estimate(own, W) == table.estimate(tied, W)
    assert table.memory(own, W) - table.memory(tied, W) == tied.vocab * tied.width * 4


def test_a_generation_is_estimated_where_its_spans_have_places_of_their_own() -> None:
    """A prompt is measured in one place, decoding in several."""
    story = Workload(phase="generation", prompt=9, tokens=50)
    table = LatencyTable(made_up_table([]).provenance)
    for key in keys_for(small_space((32,)), {"story": story}, "float32"):
        for cache in (RESIDENT, STREAMED) if key.phase == "decode" else (STREAMED,):
            table.add(made_up_row(key.placed(0, cache), 2.0 if key.phase == "decode" else 30.0, working_set_mb=0.1))
    model = mixed(1)
    parts = len(model.layers) + 1
    assert table.estimate(model, story).seconds == pytest.approx(1e-3 * parts * (30 + 50 * 2))


def test_rows_of_some_places_serve_where_others_lack_or_did_not_fit() -> None:
    table = by_bytes_between()
    table.add(made_up_row(ATTENTION.placed(1, STREAMED), None))
    table.require(KEYS)
    assert attention_ms(table, mixed(6)) == pytest.approx(4.0)
    assert 1.0 < attention_ms(table, mixed(2)) < 4.0
    for others in (0, 1, 7):
        table.add(made_up_row(ATTENTION.placed(others, STREAMED), None))
    with pytest.raises(OutOfMemory, match="did not fit"):
        table.estimate(mixed(2), W)
    for others in (0, 1, 7):
        del table.rows[ATTENTION.placed(others, STREAMED)]
    table.add(made_up_row(KEYS[0] if KEYS[0] != ATTENTION else KEYS[1]))  # the estimator's memory goes
    with pytest.raises(TableError, match="has no row for"):
        table.estimate(mixed(2), W)
