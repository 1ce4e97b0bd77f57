"""Every row that a table of a space needs: what its members are made of, in the places in which they have it.

A block's time depends on what stands around it. Among other work it runs against colder translations and caches than
in a row of its own kind, and more so the rarer it is; and whether its bytes are still in the device's cache depends on
how many bytes a whole pass of the model touches. So each block is measured in a few places, and an estimate takes the
ones that are like the model at hand. How many bytes the models of a space touch says which of them are needed.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, cycle, islice, product

from nfsearch.latency_lut.keys import CACHES, STREAMED, VAST, Key, ends_part, layer_parts
from nfsearch.latency_lut.workload import Span, Workload
from nfsearch.space.architecture import Layer
from nfsearch.space.notation import parse_layers
from nfsearch.space.search_space import SearchSpace

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8}
SHARES = dict(zip(CACHES, (0.5, 1.3, 4.0, 32.0), strict=True))  # of the device's last cache, that a pass touches
_MIXERS = "D M2"  # of other work, those that a width can have
_SAMPLES = 100  # members that say how many bytes those of a space touch
_SLACK = 1.3  # the rarest members touch this much less or more than any of those


def keys_for(space: SearchSpace, workloads: Mapping[str, Workload], dtype: str) -> list[Key]:
    """What a member of `space` can ask for, wherever it is measured, once each."""
    alphabet = space.alphabet()
    keys: set[Key] = set()
    for span, width, meta in product(_measured_spans(workloads), space.widths, space.meta_tokens):
        parts = [ends_part(width, space.vocab, span, dtype, meta, space.head_norm)]
        for layer in alphabet:
            parts += layer_parts(layer, width, span, dtype, meta)
        keys.update(part.key for part in parts)  # lone passes: their last context is their first
    return _ordered(keys)


def placed(
    keys: Iterable[Key],
    space: SearchSpace,
    workloads: Mapping[str, Workload],
    cache_bytes: float,
    *,
    others: Sequence[int],
    under: Collection[int],
) -> list[Key]:
    """The rows to measure of `keys`, in the order in which that goes best, on a device with so large a last cache.
    `others` are the numbers of layers of other work among which a layer decodes, and `under` those on which the ends
    do. A prompt or the states of many sequences are work enough not to notice what else is touched.
    """
    ranges: dict[tuple[str, int, int], tuple[float, float]] = {}
    rows = []
    for key in keys:
        place = (key.phase, key.batch, key.width)
        if place not in ranges:
            spans = [s for s in _measured_spans(workloads) if (s.phase, s.batch) == place[:2]]
            ranges[place] = _touched_range(space, key.width, spans, ITEM_BYTES[key.dtype])
        caches = _caches(*ranges[place], cache_bytes)
        near = [cache for cache in caches if cache != VAST] or [STREAMED]
        if key.phase == "prefill":
            rows.append(key.placed(0, near[-1]))
        elif key.is_end:
            rows += [key.placed(n, STREAMED) for n in _no_heavier_than_the_head(key, under)]
        else:
            everywhere, among_more = (caches, caches) if key.batch == 1 else (near, near[-1:])
            rows += [key.placed(others[0], cache) for cache in everywhere]
            rows += [key.placed(n, cache) for n, cache in product(others[1:], among_more)]
    return _ordered(rows)


def touched_by_layer(layer: Layer, width: int, batch: int, held: float, item: int) -> float:
    """Bytes of a layer that a pass touches, its norm's included, when each sequence holds so many tokens."""
    cost = layer.cost(width)
    return (cost.parameters + width) * item + cost.state_bytes(batch, int(held), item)


def ends_stay(kind: str) -> bool:
    """Whether what the ends of a model read takes the place of its layers' bytes in the last cache of a device of this
    kind. On a GPU it does not: the head's kernel asks that its rows leave first."""
    return kind == "cpu"


def touched_by_ends(width: int, vocab: int, meta_tokens: int, item: int) -> float:
    """Bytes of the head, of meta tokens and of the final norm."""
    return (vocab + meta_tokens + 1) * width * item


def other_work(width: int, count: int, besides: Layer | None = None) -> tuple[Layer, ...]:
    """So many layers of other work: FFNs and mixers in turn, but no layers of the kind in question, nor two of one kind
    side by side, as far as the width can have any."""
    (feed_forward,) = parse_layers("F")
    kind = besides.op if besides else None
    mixers = [mixer for mixer in parse_layers(_MIXERS) if mixer.op != kind and _fits(mixer, width)]
    turns = mixers if kind == feed_forward.op else [each for mixer in mixers for each in (feed_forward, mixer)]
    return tuple(islice(cycle(turns or [feed_forward]), count))


def _fits(layer: Layer, width: int) -> bool:
    try:
        layer.shape(width)
    except ValueError:
        return False
    return True


def _no_heavier_than_the_head(key: Key, under: Collection[int]) -> list[int]:
    """How many layers lie under the ends, at least one: under a lighter head the difference would be theirs."""
    item, held = ITEM_BYTES[key.dtype], key.context + 1
    head = touched_by_ends(key.width, int(key.end_settings["vocab"]), 0, item)
    layers = other_work(key.width, max(under))
    weights = accumulate(touched_by_layer(layer, key.width, key.batch, held, item) for layer in layers)
    most = max(1, sum(weight <= head for weight in weights))
    return sorted({min(n, most) for n in under})


def _touched_range(space: SearchSpace, width: int, spans: Sequence[Span], item: int) -> tuple[float, float]:
    """The fewest and the most bytes that a pass of a member touches, about: random ones tell."""
    rng = random.Random(0)
    held = [span.first + max(space.meta_tokens) for span in spans]
    ends, batch = touched_by_ends(width, space.vocab, max(space.meta_tokens), item), spans[0].batch
    known: dict[tuple[Layer, int], float] = {}
    totals = []
    for _ in range(_SAMPLES):
        layers = space.sample(rng).architecture.layers
        for tokens in {min(held), max(held)}:
            total = ends
            for layer in layers:
                if (layer, tokens) not in known:
                    known[layer, tokens] = touched_by_layer(layer, width, batch, tokens, item)
                total += known[layer, tokens]
            totals.append(total)
    return min(totals) / _SLACK, max(totals) * _SLACK


def _caches(least: float, most: float, cache_bytes: float) -> list[str]:
    """Those between which, or nearest to which, models that touch so many bytes lie."""
    bytes_of = [share * cache_bytes for share in SHARES.values()]
    below, above = [0.0, *bytes_of[:-1]], [*bytes_of[1:], float("inf")]
    return [name for name, low, high in zip(SHARES, below, above, strict=True) if least < high and most > low]


def _measured_spans(workloads: Mapping[str, Workload]) -> Iterator[Span]:
    """Lone passes at the contexts of each workload's grid."""
    for workload in workloads.values():
        for choice in workload.choices:
            for span in choice.spans:
                yield from (Span(span.phase, span.batch, context) for context in span.grid)


def _ordered(keys: Iterable[Key]) -> list[Key]:
    """Those of one block and width one after the other."""
    return sorted(keys, key=lambda key: (key.dtype, key.width, key.block, key))
