"""Which rows a space needs, in which places."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsearch.latency_lut import Key, Workload, keys_for
from nfsearch.latency_lut.keys import BETWEEN, CACHES, RESIDENT, STREAMED, VAST
from nfsearch.latency_lut.places import SHARES, _caches, other_work, placed, touched_by_ends, touched_by_layer
from nfsearch.space.architecture import Architecture
from nfsearch.space.notation import parse
from nfsearch.space.search_space import SearchSpace

from .helpers import made_up_table, small_space

OTHERS, UNDER = (0, 1, 7), (1, 4)
WORKLOADS = {
    "tpot": Workload(context=100),
    "ttft": Workload(phase="prefill", batch=2, context=100),
    "story": Workload(phase="generation", prompt=9, tokens=3000),
    "serving": Workload(phase="throughput", context=100, batches=(1, 300), memory_gb=1),
}


def rows(
    space: SearchSpace, workloads: dict[str, Workload], cache_bytes: float, others: tuple[int, ...] = OTHERS
) -> list[Key]:
    return placed(keys_for(space, workloads, "float32"), space, workloads, cache_bytes, others=others, under=UNDER)


def touched(model: Architecture, batch: int, held: int) -> float:
    """Bytes of a decode step."""
    layers = sum(touched_by_layer(layer, model.width, batch, held, 4) for layer in model.layers)
    return layers + touched_by_ends(model.width, model.vocab, model.meta_tokens, 4)


def test_bytes_are_those_of_weights_and_state() -> None:
    model = Architecture.parse("A[head_dim=16] A[head_dim=16,window=8] D[head_dim=16] F", width=32, vocab=100)
    assert touched(model, 3, 20) == 4 * model.parameters + model.state_bytes(3, 20, 4)


@pytest.mark.parametrize(
    ("least", "most", "caches"),
    [
        (1, 2, [RESIDENT]),
        (49, 51, [RESIDENT, BETWEEN]),
        (60, 70, [RESIDENT, BETWEEN]),
        (120, 140, [RESIDENT, BETWEEN, STREAMED]),
        (150, 160, [BETWEEN, STREAMED]),
        (150, 500, [BETWEEN, STREAMED, VAST]),
        (500, 10_000, [STREAMED, VAST]),
        (4000, 10_000, [VAST]),
        (10, 10_000, [RESIDENT, BETWEEN, STREAMED, VAST]),
    ],
)
def test_caches_are_those_next_to_the_bytes_that_models_touch(least: float, most: float, caches: list[str]) -> None:
    """Of a cache of 100 bytes: rows touch 50, 130, 400 or 3200."""
    assert _caches(least, most, 100) == caches


def test_only_a_layers_decoding_is_measured_among_others() -> None:
    found: dict[tuple[str, bool], set[tuple[int, str]]] = defaultdict(set)
    workloads = {name: WORKLOADS[name] for name in ("tpot", "ttft")}
    for key in rows(small_space((32,)), workloads, 5e5):
        found[key.phase, key.is_end].add((key.others, key.cache))
    assert found["decode", False] == {(others, cache) for others in (0, 1, 7) for cache in (RESIDENT, BETWEEN)}
    assert found["decode", True] == {(1, STREAMED)}
    assert found["prefill", False] == found["prefill", True] == {(0, BETWEEN)}


def test_ends_lie_over_no_more_layers_than_the_head_weighs() -> None:
    space, workloads = SearchSpace(layers=parse("F", {}), widths=(64,), vocab=10_000), {"tpot": Workload(context=100)}
    (end,) = (key for key in keys_for(space, workloads, "float32") if key.is_end)
    found = placed([end], space, workloads, 1e6, others=OTHERS, under=(1, 4, 1000))
    assert [key.others for key in found[:2]] == [1, 4]
    weights = [touched_by_layer(layer, 64, 1, 1, 4) for layer in other_work(64, 1000)]
    most = found[2].others
    assert sum(weights[:most]) <= touched_by_ends(64, 10_000, 0, 4) < sum(weights[: most + 1])


def test_only_a_layers_decoding_is_measured_where_vast_memory_is_touched() -> None:
    found: dict[tuple[str, bool], set[tuple[int, str]]] = defaultdict(set)
    workloads = {name: WORKLOADS[name] for name in ("tpot", "ttft")}
    for key in rows(small_space((32,)), workloads, 1e3):
        found[key.phase, key.is_end].add((key.others, key.cache))
    assert found["decode", False] == {(others, cache) for others in (0, 1, 7) for cache in (STREAMED, VAST)}
    assert found["decode", True] == {(1, STREAMED)}
    assert found["prefill", False] == found["prefill", True] == {(0, STREAMED)}


@pytest.mark.parametrize(("cache_bytes", "caches"), [(1e12, {RESIDENT}), (1e3, {STREAMED, VAST}), (1.5e5, set(CACHES))])
def test_rows_are_pruned_to_the_bytes_that_members_touch(cache_bytes: float, caches: set[str]) -> None:
    keys = rows(small_space((32, 64)), {"tpot": Workload(context=100)}, cache_bytes)
    assert {key.cache for key in keys if not key.is_end} == caches


def test_a_larger_batch_touches_more() -> None:
    workloads = {"one": Workload(context=100), "many": Workload(batch=300, context=100)}
    keys = rows(small_space((32,)), workloads, 2e6)
    layers = [key for key in keys if not key.is_end]
    assert {key.cache for key in layers if key.batch == 1} == {RESIDENT}
    assert STREAMED in {key.cache for key in layers if key.batch == 300}
    vast = rows(small_space((32,)), workloads, 1e3)
    assert VAST in {key.cache for key in vast if key.batch == 1}
    assert VAST not in {key.cache for key in vast if key.batch == 300}


def test_nothing_is_asked_for_twice_and_one_block_comes_after_the_other() -> None:
    keys = rows(small_space(), WORKLOADS, 1e5)
    assert len(keys) == len(set(keys))
    runs = [(key.width, key.block) for i, key in enumerate(keys) if i == 0 or keys[i - 1].block != key.block]
    assert len(runs) == len(set(runs))
    assert {key.placeless for key in keys} == set(keys_for(small_space(), WORKLOADS, "float32"))


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32),
    st.floats(3, 9).map(lambda power: 10**power),
    st.sampled_from([(0,), OTHERS]),
    st.booleans(),
    st.sampled_from(sorted(WORKLOADS)),
)
def test_every_member_is_served_from_places_like_its_own(
    seed: int, cache_bytes: float, others: tuple[int, ...], head_norm: bool, name: str
) -> None:
    space = small_space(meta_tokens=(0, 4), head_norm=head_norm)
    workloads = {name: WORKLOADS[name]}
    keys = rows(space, workloads, cache_bytes, others)
    table = made_up_table(keys)
    member = space.sample(random.Random(seed)).architecture
    assert table.estimate(member, workloads[name]).seconds > 0
    table.require(keys_for(space, workloads, "float32"))
    # The caches that were asked for are those about the bytes that the member touches.
    for choice in workloads[name].choices:
        for span in choice.spans:
            if span.phase == "prefill":
                continue
            asked = {key.cache for key in keys if key.batch == span.batch and key.width == member.width}
            for held in (span.first, span.last):
                bytes_of = touched(member, span.batch, held + member.meta_tokens)
                shares = sorted(share for cache, share in SHARES.items() if cache != VAST or span.batch == 1)
                below = [share for share in shares if share * cache_bytes <= bytes_of][-1:] or shares[:1]
                above = [share for share in shares if share * cache_bytes >= bytes_of][:1] or shares[-1:]
                assert {SHARES[cache] for cache in asked} >= {*below, *above}
