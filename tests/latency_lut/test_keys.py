from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nfsearch.latency_lut import Key, Workload, keys_for, keys_of
from nfsearch.latency_lut.keys import end_keys, layer_key
from nfsearch.space.architecture import Architecture, Layer

from .helpers import small_space

DECODE = Workload(context=100)
PREFILL = Workload(phase="prefill", batch=2, context=100)


@pytest.mark.parametrize(
    ("layer", "workload", "meta", "context"),
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
def test_context_is_in_normal_form(layer: Layer, workload: Workload, meta: int, context: int) -> None:
    key = layer_key(layer, 256, workload, "float32", meta)
    assert key == Key(workload.phase, "float32", workload.batch, 256, str(layer), context)


def test_ends_know_vocabulary_and_head_norm() -> None:
    embedding, head = end_keys(256, 1000, PREFILL, "float32", 16, head_norm=True)
    assert (embedding.end, embedding.phase, embedding.context) == ("embedding", "prefill", 116)
    assert embedding.end_settings == {"vocab": "1000"}
    # The head sees one token of each sequence, however many were read.
    assert (head.end, head.phase, head.context) == ("head", "decode", 0)
    assert head.end_settings == {"vocab": "1000", "head_norm": "true"}
    assert layer_key(Layer.of("F"), 256, DECODE, "float32").end is None


def test_keys_of_counts_repeats() -> None:
    architecture = Architecture.parse("(A[window=64] F){3} F", width=256, vocab=64)
    counts = {key.block: n for key, n in keys_of(architecture, DECODE, "float32").items()}
    assert counts == {"A[window=64]": 3, "F": 4, "embedding[vocab=64]": 1, "head[vocab=64]": 1}


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([DECODE, PREFILL]), st.booleans())
def test_keys_for_covers_every_member(seed: int, workload: Workload, head_norm: bool) -> None:
    space = small_space(meta_tokens=(0, 4), head_norm=head_norm)
    keys = keys_for(space, {"one": workload, "other": DECODE}, "float32")
    assert len(keys) == len(set(keys))
    member = space.sample(random.Random(seed)).architecture
    assert set(keys_of(member, workload, "float32")) <= set(keys)


def test_keys_for_asks_for_nothing_twice() -> None:
    workloads = {"near": Workload(context=100), "far": Workload(context=200)}
    keys = keys_for(small_space(), workloads, "float32")
    # Two widths of: full attention at two contexts, windowed attention, DeltaNet, FFN, embedding, head.
    assert len(keys) == 2 * (2 + 1 + 1 + 1 + 1 + 1)


def test_prefill_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 token"):
        Workload(phase="prefill", context=0)
