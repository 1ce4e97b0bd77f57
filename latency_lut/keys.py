"""Which rows a latency table needs: for an architecture, and for everything a space can contain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from nfsearch.latency_lut.workload import Workload
from nfsearch.space.architecture import Architecture, Layer

if TYPE_CHECKING:
    from nfsearch.space.search_space import SearchSpace

EMBEDDING = "embedding"
HEAD = "head"


@dataclass(frozen=True, order=True)
class Key:
    """What one row measures. Two passes that cost the same share one key, because `context` is in normal form.

    `block` is the notation of a layer (its row covers norm, operator and residual), or `embedding[vocab=N]`, or
    `head[vocab=N]` (final norm and head, for the last token of each sequence; `head[head_norm=true,vocab=N]` where
    logits are divided by the lengths of the head's rows). `context` counts meta tokens. In decode it is the tokens
    that the state holds: 0 for a block whose cost does not grow with them, at most the window for a windowed one. In
    prefill it is the tokens read. A head is a decode row of context 0 in both phases: it sees one token a sequence.
    """

    phase: str
    dtype: str
    batch: int
    width: int
    block: str
    context: int

    def __str__(self) -> str:
        return (
            f"{self.block} at width {self.width}, {self.phase}, batch {self.batch}, "
            f"context {self.context}, {self.dtype}"
        )

    @property
    def end(self) -> str | None:
        """`embedding` or `head` where the row is one of a model's two ends, None where it is a layer."""
        name = self.block.partition("[")[0]
        return name if name in (EMBEDDING, HEAD) else None

    @property
    def end_settings(self) -> dict[str, str]:
        """What stands in the brackets of an end: `vocab`, and `head_norm`."""
        inside = self.block.partition("[")[2].rstrip("]")
        return dict(part.split("=", 1) for part in inside.split(","))


def layer_key(layer: Layer, width: int, workload: Workload, dtype: str, meta_tokens: int = 0) -> Key:
    """The row that prices `layer` in this pass. Raises ValueError where its settings do not fit the width."""
    cost = layer.cost(width)
    context = workload.context + meta_tokens
    if workload.phase == "decode":
        context = cost.cached_tokens(context) if cost.cache_per_token else 0
    return Key(workload.phase, dtype, workload.batch, width, str(layer), context)


def end_keys(
    width: int, vocab: int, workload: Workload, dtype: str, meta_tokens: int = 0, head_norm: bool = False
) -> tuple[Key, Key]:
    """The rows that price the embedding, and the final norm with the head."""
    read = workload.context + meta_tokens if workload.phase == "prefill" else 0
    norm = "head_norm=true," if head_norm else ""
    return (
        Key(workload.phase, dtype, workload.batch, width, f"{EMBEDDING}[vocab={vocab}]", read),
        Key("decode", dtype, workload.batch, width, f"{HEAD}[{norm}vocab={vocab}]", 0),
    )


def keys_of(architecture: Architecture, workload: Workload, dtype: str) -> Counter[Key]:
    """The rows that `architecture` is the sum of, and how often each."""
    a = architecture
    layers = Counter(a.layers)
    keys = Counter({layer_key(x, a.width, workload, dtype, a.meta_tokens): n for x, n in layers.items()})
    keys.update(end_keys(a.width, a.vocab, workload, dtype, a.meta_tokens, a.head_norm))
    return keys


def keys_for(space: SearchSpace, workloads: Mapping[str, Workload], dtype: str) -> list[Key]:
    """Every row that a member of `space` can ask for, once each, in the order in which they are measured."""
    keys: set[Key] = set()
    for workload, width, meta in product(workloads.values(), space.widths, space.meta_tokens):
        keys.update(end_keys(width, space.vocab, workload, dtype, meta, space.head_norm))
        keys.update(layer_key(layer, width, workload, dtype, meta) for layer in space.alphabet())
    return sorted(keys)
