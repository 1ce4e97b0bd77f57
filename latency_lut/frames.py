"""The models whose times make a row: one with the block in its place, others without it.

A layer's time cannot be seen in a chain of its own kind alone: among other work it may take a fifth more or less. So
it is put into a model, as one would lie in memory, and what the model then takes longer is the layer's time.
"""

from __future__ import annotations

from typing import NamedTuple

from nfsearch.latency_lut.keys import CACHES, RESIDENT, STREAMED, Key
from nfsearch.latency_lut.places import ITEM_BYTES, SHARES, other_work, touched_by_ends, touched_by_layer
from nfsearch.space.architecture import Architecture, Layer
from nfsearch.space.notation import parse_layers

_LEAST_VOCAB = 64
_COPIES = {"decode": 8, "prefill": 2}  # of a layer, at most; the work of one prompt hides what comes before it
_FEWEST = {0: 3, 1: 8, 7: 3}  # by the layers between them: fewer would say more about themselves than about the kind
_MOST_LAYERS = 32  # of all kinds; what a model touches beyond them is its head
_LARGE = 16  # caches that the fewest copies fill at most: the work of larger ones hides any launch


class Term(NamedTuple):
    """A model, and what its time counts in a row."""

    model: Architecture
    weight: float


def terms_of(key: Key, cache_bytes: float) -> list[Term]:
    """The models of a row, on a device with so large a last cache; the one that has all of the block comes last."""
    if key.is_end:
        return _ends(key)
    (layer,) = parse_layers(key.block)
    others = other_work(key.width, key.others, besides=layer)
    target = SHARES[key.cache] * cache_bytes
    group = _touched((layer, *others), key)
    fewest = 1 if key.cache == RESIDENT else min(_FEWEST.get(key.others, 1), int(_LARGE * cache_bytes / group))
    filled = SHARES[min(key.cache, STREAMED, key=CACHES.index)] * cache_bytes
    most = min(_COPIES[key.phase], max(1, _MOST_LAYERS // (1 + key.others)))
    copies = min(most, max(1, fewest, round(filled / group / (1 if others else 2))))
    others = other_work(key.width, key.others * copies, besides=layer)
    base = others or (layer,) * copies  # alone, it is twice as many that take longer
    more: tuple[Layer, ...] = () if others else base
    for i in range(copies):
        more += (layer, *others[i * key.others : (i + 1) * key.others])
    # The head fills up what lacks, unless all of it stays in the cache anyway.
    room = 0.0 if key.cache == RESIDENT else target - _touched(more, key)
    vocab = max(_LEAST_VOCAB, int(room / (key.width * ITEM_BYTES[key.dtype])))
    return [
        Term(Architecture(key.width, base, vocab), -1 / copies),
        Term(Architecture(key.width, more, vocab), 1 / copies),
    ]


def touched_by(model: Architecture, key: Key, ends: bool = True) -> float:
    """Bytes that a pass of a model touches under the conditions of a row; or those of its layers."""
    layers = _touched(model.layers, key)
    return layers + touched_by_ends(model.width, model.vocab, 0, ITEM_BYTES[key.dtype]) if ends else layers


def touched_between(key: Key) -> float:
    """Bytes that other layers touch between one block of a row and the next."""
    return 0.0 if key.is_end else _touched(other_work(key.width, key.others, parse_layers(key.block)[0]), key)


def _touched(layers: tuple[Layer, ...], key: Key) -> float:
    held = key.context + (key.phase == "decode")
    return sum(touched_by_layer(each, key.width, key.batch, held, ITEM_BYTES[key.dtype]) for each in layers)


def _ends(key: Key) -> list[Term]:
    """A model, less its layers: what so many layers more add to another model."""
    settings = key.end_settings
    vocab, head_norm = int(settings["vocab"]), "head_norm" in settings
    base = other_work(key.width, key.others)
    whole = Term(Architecture(key.width, base, vocab, head_norm=head_norm), 1.0)
    if not base:
        return [whole]
    # Twice the layers under a smaller head touch as many bytes as the layers under the head in question.
    smaller = max(_LEAST_VOCAB, vocab - int(_touched(base, key) / (key.width * ITEM_BYTES[key.dtype])))
    less = [Term(Architecture(key.width, base * n, smaller), weight) for n, weight in ((1, 1.0), (2, -1.0))]
    return [*less, whole]
