"""Which rows a latency table needs: for an architecture, and for everything a space can contain."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

from nfsearch.latency_lut.workload import Span, Workload
from nfsearch.space.architecture import Layer

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
    def tokens(self) -> int:
        """Tokens that one pass handles."""
        return self.batch * (self.context if self.phase == "prefill" else 1)

    @property
    def end_settings(self) -> dict[str, str]:
        """What stands in the brackets of an end: `vocab`, and `head_norm`."""
        inside = self.block.partition("[")[2].rstrip("]")
        return dict(part.split("=", 1) for part in inside.split(","))


class Part(NamedTuple):
    """Passes that one block makes: `times` at each context from the key's own to `last`."""

    key: Key
    last: int
    times: int


def layer_parts(layer: Layer, width: int, span: Span, dtype: str, meta_tokens: int = 0) -> list[Part]:
    """The passes of `layer` in those of `span`, each at the tokens that the layer holds then.

    A windowed layer makes one pass at each context up to the window, and then all the others at the window itself; one
    whose cost does not grow makes them all at 0. Raises ValueError where its settings do not fit the width.
    """
    cost = layer.cost(width)
    key = Key(span.phase, dtype, span.batch, width, str(layer), 0)
    first, last = span.first + meta_tokens, span.last + meta_tokens
    if span.phase == "decode" and not cost.cache_per_token:
        return [Part(key, 0, span.count)]
    window = last + 1 if span.phase == "prefill" or cost.window is None else cost.window
    parts = []
    if first < window:
        parts.append(Part(replace(key, context=first), min(last, window - 1), 1))
    if last >= window:
        parts.append(Part(replace(key, context=window), window, last - max(first, window) + 1))
    return parts


def end_parts(
    width: int, vocab: int, span: Span, dtype: str, meta_tokens: int = 0, head_norm: bool = False
) -> list[Part]:
    """The passes of the embedding, and of the final norm with the head."""
    read = span.first + meta_tokens if span.phase == "prefill" else 0
    norm = "head_norm=true," if head_norm else ""
    embedding = Key(span.phase, dtype, span.batch, width, f"{EMBEDDING}[vocab={vocab}]", read)
    head = Key("decode", dtype, span.batch, width, f"{HEAD}[{norm}vocab={vocab}]", 0)
    return [Part(embedding, read, span.count), Part(head, 0, span.count)]


def keys_for(space: SearchSpace, workloads: Mapping[str, Workload], dtype: str) -> list[Key]:
    """Every row that a member of `space` can ask for, once each, in the order in which they are measured: those of
    one block and width one after the other."""
    alphabet = space.alphabet()
    keys: set[Key] = set()
    for span, width, meta in product(_measured_spans(workloads), space.widths, space.meta_tokens):
        parts = end_parts(width, space.vocab, span, dtype, meta, space.head_norm)
        for layer in alphabet:
            parts += layer_parts(layer, width, span, dtype, meta)
        keys.update(part.key for part in parts)  # lone passes: their last context is their first
    return sorted(keys, key=lambda key: (key.dtype, key.width, key.block, key))


def _measured_spans(workloads: Mapping[str, Workload]) -> Iterator[Span]:
    """Lone passes at the contexts of each workload's grid."""
    for workload in workloads.values():
        for choice in workload.choices:
            for span in choice.spans:
                yield from (Span(span.phase, span.batch, context) for context in span.grid)
