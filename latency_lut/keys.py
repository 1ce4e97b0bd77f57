"""Which rows a latency table needs for an architecture: what is timed, and in which place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from nfsearch.latency_lut.workload import Span
from nfsearch.space.architecture import Layer

ENDS = "ends"
# How a device's last cache stands to the bytes that one pass touches before it comes back to a block: all of them stay
# in it, about as many as it holds, a few times as many, or so many that their addresses have to be translated anew.
RESIDENT, BETWEEN, STREAMED, VAST = CACHES = ("resident", "between", "streamed", "vast")


@dataclass(frozen=True, order=True)
class Key:
    """What one row measures. Two passes that cost the same share one key, because `context` is in normal form.

    `block` is the notation of a layer (its row covers norm, operator and residual), or `ends[vocab=N]`: embedding,
    final norm and head (for the last token of each sequence), and the constant cost of a forward pass;
    `ends[head_norm=true,vocab=N]` where logits are divided by the lengths of the head's rows. `context` counts meta
    tokens. In decode it is the tokens that the state holds: 0 for what does not grow with them, at most the window for
    a windowed block. In prefill it is the tokens read.

    `others` and `cache` are the place in which it is measured: how many layers of other work lie between such a block
    and the next (under the ends: there are), and whether the block is still in the device's cache when its turn comes
    again (of ends, how much is touched says that). What needs no place, such as the question of an architecture, has
    those of the defaults.
    """

    phase: str
    dtype: str
    batch: int
    width: int
    block: str
    context: int
    others: int = 0
    cache: str = STREAMED

    def __str__(self) -> str:
        return (
            f"{self.block} at width {self.width}, {self.phase}, batch {self.batch}, "
            f"context {self.context}, {self.dtype}"
        )

    @property
    def is_end(self) -> bool:
        """Whether the row is of a model's two ends rather than of a layer."""
        return self.block.partition("[")[0] == ENDS

    @property
    def tokens(self) -> int:
        """Tokens that one pass handles."""
        return self.batch * (self.context if self.phase == "prefill" else 1)

    @property
    def end_settings(self) -> dict[str, str]:
        """What stands in the brackets of ends: `vocab`, and `head_norm`."""
        inside = self.block.partition("[")[2].rstrip("]")
        return dict(part.split("=", 1) for part in inside.split(","))

    @property
    def placeless(self) -> Key:
        """The same, wherever it is measured."""
        return self.placed(0, STREAMED)

    def placed(self, others: int, cache: str) -> Key:
        """The same in another place."""
        return replace(self, others=others, cache=cache)

    def at(self, context: int) -> Key:
        """The same at another context."""
        return replace(self, context=context)


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
        parts.append(Part(key.at(first), min(last, window - 1), 1))
    if last >= window:
        parts.append(Part(key.at(window), window, last - max(first, window) + 1))
    return parts


def ends_part(width: int, vocab: int, span: Span, dtype: str, meta_tokens: int = 0, head_norm: bool = False) -> Part:
    """The passes of the embedding and of the final norm with the head; only in a prompt does their cost grow with the
    tokens."""
    read = span.first + meta_tokens if span.phase == "prefill" else 0
    norm = "head_norm=true," if head_norm else ""
    return Part(Key(span.phase, dtype, span.batch, width, f"{ENDS}[{norm}vocab={vocab}]", read), read, span.count)
