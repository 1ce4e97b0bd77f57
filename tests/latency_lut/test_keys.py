from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsearch.latency_lut import Key, Workload, keys_for
from nfsearch.latency_lut.keys import RESIDENT, Part, ends_part, layer_parts
from nfsearch.latency_lut.workload import Span
from nfsearch.space.architecture import Layer

from .helpers import made_up_table, small_space

DECODE = Span("decode", 1, 100)
PREFILL = Span("prefill", 2, 100)


@pytest.mark.parametrize(
    ("layer", "span", "meta", "context"),
    [
        (Layer.of("A"), DECODE, 0, 100),
        (Layer.of("A"), DECODE, 16, 116),
        (Layer.of("A", window=64), DECODE, 16, 64),
        (Layer.of("A", window=512), DECODE, 0, 100),
        (Layer.of("D"), DECODE, 16, 0),
        (Layer.of("F"), DECODE, 0, 0),
        (Layer.of("F"), PREFILL, 16, 116),
        (Layer.of("A", window=64), PREFILL, 0, 100),
    ],
)
def test_context_is_in_normal_form(layer: Layer, span: Span, meta: int, context: int) -> None:
    key = Key(span.phase, "float32", span.batch, 256, str(layer), context)
    assert layer_parts(layer, 256, span, "float32", meta) == [Part(key, context, 1)]


@given(
    st.sampled_from([None, 1, 7, 64]),
    st.integers(0, 100),
    st.integers(1, 100),
    st.sampled_from([0, 3, 64]),
    st.booleans(),
)
def test_parts_of_a_span_are_those_of_its_passes(
    window: int | None, first: int, count: int, meta: int, grows: bool
) -> None:
    layer = Layer.of("A", window=window) if grows else Layer.of("D")
    parts = layer_parts(layer, 256, Span("decode", 1, first, count), "float32", meta)
    held = [c for part in parts for c in range(part.key.context, part.last + 1) for _ in range(part.times)]
    alone = [layer_parts(layer, 256, Span("decode", 1, c), "float32", meta) for c in range(first, first + count)]
    assert held == [part.key.context for (part,) in alone]


def test_ends_know_vocabulary_and_head_norm() -> None:
    key = ends_part(256, 1000, PREFILL, "float32", 16, head_norm=True).key
    assert (key.is_end, key.phase, key.context) == (True, "prefill", 116)
    assert key.end_settings == {"vocab": "1000", "head_norm": "true"}
    assert ends_part(256, 1000, PREFILL, "float32").key.end_settings == {"vocab": "1000"}
    assert not layer_parts(Layer.of("F"), 256, DECODE, "float32")[0].key.is_end


def test_ends_are_passed_as_often_as_the_layers() -> None:
    assert ends_part(256, 1000, DECODE, "float32", 16) == Part(
        Key("decode", "float32", 1, 256, "ends[vocab=1000]", 0), last=0, times=1
    )
    assert ends_part(256, 1000, Span("decode", 1, 100, 50), "float32", 16).times == 50


def test_a_place_is_no_part_of_a_question() -> None:
    key = ends_part(256, 1000, DECODE, "float32").key
    placed = key.placed(7, RESIDENT)
    assert (placed.others, placed.cache) == (7, RESIDENT)
    assert placed != key == placed.placeless


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from(
        [
            Workload(context=100),
            Workload(phase="prefill", batch=2, context=100),
            Workload(phase="generation", prompt=9, tokens=3000),
            Workload(phase="throughput", context=100, batches=(1, 3), memory_gb=1),
        ]
    ),
    st.booleans(),
)
def test_keys_for_serves_every_member(seed: int, workload: Workload, head_norm: bool) -> None:
    space = small_space(meta_tokens=(0, 4), head_norm=head_norm)
    keys = keys_for(space, {"one": workload, "other": Workload(context=100)}, "float32")
    assert len(keys) == len(set(keys))
    member = space.sample(random.Random(seed)).architecture
    assert made_up_table(keys).estimate(member, workload).seconds > 0


def test_keys_for_asks_for_nothing_twice() -> None:
    workloads = {"near": Workload(context=100), "far": Workload(context=200)}
    keys = keys_for(small_space(), workloads, "float32")
    # Two widths of: full attention at two contexts, windowed attention, DeltaNet, FFN, ends.
    assert len(keys) == 2 * (2 + 1 + 1 + 1 + 1)


def test_rows_of_one_block_and_width_come_together() -> None:
    workloads = {"one": Workload(context=100), "many": Workload(batch=4, context=200)}
    keys = keys_for(small_space(), workloads, "float32")
    runs = [(key.width, key.block) for i, key in enumerate(keys) if i == 0 or keys[i - 1].block != key.block]
    assert len(runs) == len(set(runs))
