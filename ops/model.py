"""The hybrid language model: embedding, meta tokens, residual blocks, norm, tied head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nfsearch.ops import fused
from nfsearch.ops.operator import Operator, RMSNorm, State, build_operator, wide
from nfsearch.space import Architecture, Layer

_LOGITS_AT_ONCE = 1 << 25  # logits held at a time in `loss`: 128 MiB of float32


class Block(nn.Module):
    """x + operator(norm(x))."""

    def __init__(self, layer: Layer, width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width, norm_eps)
        self.operator = build_operator(layer, width)

    def forward(self, x: Tensor, state: State | None = None, position: int = 0) -> Tensor:
        """x [batch, time, width]; see `Operator.forward`."""
        return x + self.operator(self.norm(x), state, position)

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        """x [batch, width]; see `Operator.step`. On CUDA by the fused kernels, where they serve."""
        if fused.block_refusal(self, x, state):
            return x + self.operator.step(self.norm(x), state, position)
        return fused.block_step(self, x, state, position)


class HybridLM(nn.Module):
    """The model an architecture describes, freshly initialised.

    Positions count the meta tokens, which take 0 .. meta_tokens-1 and whose outputs are never returned; lengths count
    text tokens only.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        width = architecture.width
        self.embedding = nn.Embedding(architecture.vocab, width)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.meta = nn.Parameter(torch.randn(architecture.meta_tokens, width)) if architecture.meta_tokens else None
        self.blocks = nn.ModuleList(Block(layer, width, architecture.norm_eps) for layer in architecture.layers)
        self.norm = RMSNorm(width, architecture.norm_eps)

    def operators(self) -> Iterator[Operator]:
        """The operators, in order."""
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block.operator

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [batch, time, vocab] in float32 of tokens [batch, time]."""
        return self.head(self.hidden(tokens))

    def loss(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats per token of targets [batch, time] given tokens [batch, time].

        Logits of a large batch are computed a slice at a time, and again in the backward pass, so that they are never
        all held.
        """
        hidden, wanted = self.hidden(tokens).flatten(0, 1), targets.flatten()
        rows = max(1, _LOGITS_AT_ONCE // self.architecture.vocab)
        if len(wanted) <= rows:
            return F.cross_entropy(self.head(hidden), wanted)
        parts = [
            checkpoint(self._summed_loss, h, w, use_reentrant=False, preserve_rng_state=False)
            for h, w in zip(hidden.split(rows), wanted.split(rows), strict=True)
        ]
        return torch.stack(parts).sum() / len(wanted)

    def _summed_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.head(hidden), targets, reduction="sum")

    def init_state(
        self,
        batch: int,
        max_length: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> list[State]:
        """The empty state of each block for `max_length` text tokens; where and in what the model is, unless said."""
        weight = self.embedding.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        length = max_length + self.architecture.meta_tokens
        return [op.init_state(batch, length, device=device, dtype=dtype) for op in self.operators()]

    @torch.no_grad()
    def prefill(self, tokens: Tensor, state: list[State], position: int = 0) -> Tensor:
        """Reads tokens [batch, time] into the state; logits [batch, vocab] after the last one.

        `position` 0 starts with the meta tokens; otherwise it continues, and is how many tokens the state holds,
        meta tokens counted.
        """
        return self.next_logits(self._body(tokens, state, position)[:, -1])

    @torch.no_grad()
    def step(self, tokens: Tensor, state: list[State], position: Tensor) -> Tensor:
        """Logits [batch, vocab] after one more token each: tokens [batch], position int64 [] (meta tokens counted)."""
        x = self.embed_next(tokens)
        for block, held in zip(self.blocks, state, strict=True):
            assert isinstance(block, Block)
            x = block.step(x, held, position)
        return self.next_logits(x)

    def embed_next(self, tokens: Tensor) -> Tensor:
        """Embeddings [batch, width] of tokens [batch], one more of each sequence."""
        return self.embedding(tokens) if fused.embedding_refusal(self, tokens) else fused.embed(self, tokens)

    def next_logits(self, x: Tensor) -> Tensor:
        """Logits [batch, vocab] of one token each: final norm and head of the last block's x [batch, width]."""
        if fused.head_refusal(self, x):
            return self.head(self.norm(x))
        return fused.head(self, x)

    def hidden(self, tokens: Tensor, state: list[State] | None = None, position: int = 0) -> Tensor:
        """What the head reads: [batch, time, width] after the final norm, meta tokens cut off."""
        return self.norm(self._body(tokens, state, position))

    def _body(self, tokens: Tensor, state: list[State] | None, position: int) -> Tensor:
        """What the final norm reads: [batch, time, width], meta tokens cut off."""
        x = self.embedding(tokens)
        meta = self.meta if position == 0 else None
        if meta is not None:
            x = torch.cat((meta.expand(len(tokens), -1, -1), x), dim=1)
        for i, block in enumerate(self.blocks):
            x = block(x, None if state is None else state[i], position)
        return x if meta is None else x[:, len(meta) :]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of hidden [..., width] through the tied embedding, in float32 or wider."""
        weight = self.embedding.weight
        logits = F.linear(hidden, weight)
        logits = logits.to(wide(logits.dtype))
        if self.architecture.head_norm:
            logits = logits / weight.to(logits.dtype).norm(dim=-1)
        return logits
