"""The models whose times make a row: what they differ by is what the row is of."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from nfsearch.latency_lut import Key, Workload, keys_for
from nfsearch.latency_lut.frames import terms_of, touched_between, touched_by
from nfsearch.latency_lut.keys import CACHES, RESIDENT, STREAMED
from nfsearch.latency_lut.places import ITEM_BYTES, SHARES
from nfsearch.ops.model import HybridLM
from nfsearch.space.notation import parse, parse_layers
from nfsearch.space.search_space import SearchSpace

WORKLOADS = {
    "tpot": Workload(context=100),
    "many": Workload(batch=64, context=5000),
    "ttft": Workload(phase="prefill", batch=2, context=300),
}
MOST_COPIES = {"decode": 8, "prefill": 2}
ALL = "A[head_dim=16] | A[head_dim=16,window=8] | D[head_dim=16] | M2[head_dim=16,state=16] | GDN[head_dim=16] | F"
# 48 is divided by none of the mixers' default head dimensions, so that other work is FFNs alone.
SPACES = [
    SearchSpace(layers=parse(ALL, {}), widths=widths, vocab=vocab, head_norm=norm)
    for widths, vocab, norm in (((48, 64), 64, False), ((256,), 5000, True))
]
KEYS = [key for space in SPACES for key in keys_for(space, WORKLOADS, "float32")]


def places_of(asked: list[Key]) -> st.SearchStrategy[Key]:
    """The same in any place that a row can have."""
    return st.builds(
        lambda key, others, cache: (
            key.placed(0, min(cache, STREAMED, key=CACHES.index))
            if key.phase == "prefill"
            else key.placed(max(others, 1), STREAMED)
            if key.is_end
            else key.placed(others, cache)
        ),
        st.sampled_from(asked),
        st.sampled_from((0, 1, 7)),
        st.sampled_from(CACHES),
    )


keys = places_of(KEYS)
layers = places_of([key for key in KEYS if not key.is_end])
decoding_ends = places_of([key for key in KEYS if key.is_end and key.phase == "decode"])
caches = st.floats(4, 9).map(lambda power: 10**power)
every_place = settings(max_examples=100, deadline=None)


def sums(key: Key, cache_bytes: float) -> tuple[dict[str, float], dict[int, float], float]:
    """The weighted sums over the models: of the layers of each kind, of the heads of each size, and of models."""
    layers: dict[str, float] = defaultdict(float)
    heads: dict[int, float] = defaultdict(float)
    for model, weight in terms_of(key, cache_bytes):
        for layer, count in Counter(model.layers).items():
            layers[str(layer)] += weight * count
        heads[model.vocab] += weight
    return (
        {name: total for name, total in layers.items() if abs(total) > 1e-9},
        {vocab: total for vocab, total in heads.items() if abs(total) > 1e-9},
        sum(term.weight for term in terms_of(key, cache_bytes)),
    )


@every_place
@given(keys, caches)
def test_models_differ_by_the_block_alone(key: Key, cache_bytes: float) -> None:
    layers, heads, models = sums(key, cache_bytes)
    if key.is_end:
        assert layers == {}
        assert heads == {int(key.end_settings["vocab"]): pytest.approx(1.0)}
        assert models == pytest.approx(1.0)
    else:
        assert layers == {key.block: pytest.approx(1.0)}
        assert heads == {}
        assert models == pytest.approx(0.0)


@every_place
@given(keys, caches)
def test_models_are_of_the_rows_width_and_every_layer_fits_it(key: Key, cache_bytes: float) -> None:
    for model, _ in terms_of(key, cache_bytes):
        assert model.width == key.width
        assert model.vocab >= 64
        for layer in set(model.layers):
            layer.shape(model.width)  # raises


@every_place
@given(layers, caches)
def test_copies_are_bounded_and_so_far_apart_as_the_place_says(key: Key, cache_bytes: float) -> None:
    assume(not (key.block == "F" and key.width == 48))  # for which there is no other work than FFNs
    (layer,) = parse_layers(key.block)
    less, more = terms_of(key, cache_bytes)
    copies = round(1 / more.weight)
    assert 1 <= copies <= MOST_COPIES[key.phase]
    assert less.weight == -more.weight
    places = [i for i, each in enumerate(more.model.layers) if each == layer]
    if key.others:
        assert len(places) == copies
        assert {after - before for before, after in pairwise(places)} <= {key.others + 1}
        assert len(more.model.layers) == copies * (1 + key.others)
        others = [str(each)[0] for each in more.model.layers if each != layer]
        assert layer.op[0] not in others
        assert touched_between(key) > 0
    else:
        assert more.model.layers == (layer,) * (2 * copies)
        assert less.model.layers == (layer,) * copies
        assert touched_between(key) == 0


@every_place
@given(layers, caches)
def test_a_head_fills_up_what_the_layers_lack(key: Key, cache_bytes: float) -> None:
    last = terms_of(key, cache_bytes)[-1].model
    touched, target = touched_by(last, key), SHARES[key.cache] * cache_bytes
    if key.cache == RESIDENT:
        assert last.vocab == 64  # all of it stays in the cache anyway
    elif last.vocab > 64:
        assert abs(touched - target) <= 2 * key.width * ITEM_BYTES[key.dtype]
    else:
        assert touched > target - 65 * key.width * ITEM_BYTES[key.dtype]


@every_place
@given(decoding_ends, caches)
def test_the_models_of_ends_touch_as_many_bytes(key: Key, cache_bytes: float) -> None:
    base, double, whole = (model for model, _ in terms_of(key, cache_bytes))
    assert double.layers == 2 * base.layers
    assert whole.layers == base.layers
    assert len(base.layers) == key.others
    assert whole.head_norm == ("head_norm" in key.end_settings)
    if double.vocab > 64:
        assert touched_by(double, key) == pytest.approx(touched_by(whole, key), abs=key.width * 4)


def test_a_prompts_ends_are_a_model_without_layers() -> None:
    (key,) = (key for key in KEYS if key.is_end and key.phase == "prefill" and key.width == 64)
    ((model, weight),) = terms_of(key, 1e6)
    assert (model.layers, weight) == ((), 1.0)


@pytest.mark.parametrize("block", ["F", "A[head_dim=16]"])
def test_models_touch_what_they_hold(block: str) -> None:
    """But for the embedding, of which a pass looks up a row, and which the head is anyway."""
    key = Key("decode", "float32", 3, 32, block, 20, 0, STREAMED)
    model = terms_of(key, 1e6)[-1].model
    built = HybridLM(model)
    tensors = [*built.parameters(), *(tensor for state in built.init_state(3, 21) for tensor in state.values())]
    assert touched_by(model, key) == sum(tensor.nbytes for tensor in tensors)
