"""The hybrid language model: embedding, meta tokens, residual blocks, norm, head."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nfsearch.ops.forms import Choice, Step
from nfsearch.ops.operator import Operator, RMSNorm, State, build_operator, wide
from nfsearch.ops.residual import add_norm
from nfsearch.ops.steps import (
    Bound,
    bind_embedding,
    bind_head,
    bind_step,
    conditions,
    embedding_choice,
    head_choice,
    shapes,
    step_choice,
)
from nfsearch.space import Architecture, Layer

_LOGITS_AT_ONCE = 1 << 25  # logits held at a time in `loss`: 128 MiB of float32


class Block(nn.Module):
    """x + operator(norm(x)): one of a chain in which each leaves its sum to the next, whose norm reads it."""

    def __init__(self, layer: Layer, width: int, norm_eps: float) -> None:
        super().__init__()
        self.norm = RMSNorm(width, norm_eps)
        self.operator = build_operator(layer, width)
        self._bound = Bound()

    def forward(
        self, x: Tensor, added: Tensor | None = None, state: State | None = None, position: int = 0
    ) -> tuple[Tensor, Tensor]:
        """What the block before left, x and what is to be added to it, [batch, time, width] each, to the same: the sum,
        and what the operator gives of its norm. See `Operator.forward`."""
        x, normed = add_norm(x, added, self.norm)
        return x, self.operator(normed, state, position)

    def step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        """x [batch, width]; see `Operator.step`. On CUDA by the operator's kernels, where they serve."""
        key = (*conditions(x), shapes(state))
        step = self._bound[key] if key in self._bound else self._bound.keep(key, self.bind(x, state))
        return self.plain_step(x, state, position) if step is None else step(x.contiguous(), state, position)

    def plain_step(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        """`step` by the operator's own, in PyTorch."""
        return x + self.operator.step(self.norm(x), state, position)

    def step_choice(self, x: Tensor, state: State) -> Choice:
        """What computes `step` for inputs and states such as these, and why."""
        return step_choice(self.operator, self.norm, x, state)

    def bind(self, x: Tensor, state: State) -> Step | None:
        """`step` on the operator's kernels for all inputs and states such as these, or None where they do not serve."""
        return bind_step(self.operator, self.norm, x, state)


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
        self.own_head = None if architecture.tied_head else nn.Embedding(architecture.vocab, width)
        if self.own_head is not None:  # drawn last, so that all else is as with a tied head
            nn.init.normal_(self.own_head.weight, std=0.02)
        self.recompute = False  # whether a backward pass computes each block again, and keeps their inputs alone
        self._bound = Bound()

    @property
    def output(self) -> nn.Embedding:
        """What the head multiplies by, a row for each token of the vocabulary: the embedding, or its own."""
        return self.embedding if self.own_head is None else self.own_head

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
        x, added = self._body(tokens, state, position)
        return self.next_logits(x[:, -1] if added is None else x[:, -1] + added[:, -1])

    @torch.no_grad()
    def step(self, tokens: Tensor, state: list[State], position: Tensor) -> Tensor:
        """Logits [batch, vocab] after one more token each: tokens [batch], position int64 [] (meta tokens counted)."""
        x = self.embed_next(tokens)
        for step, held in zip(self._steps(x, state), state, strict=True):
            x = step(x, held, position)
        return self.next_logits(x)

    def _steps(self, x: Tensor, state: list[State]) -> list[Step]:
        """Those of the blocks, bound for inputs and states such as these."""
        key = ("steps", *conditions(x), tuple([shapes(held) for held in state]))
        if key in self._bound:
            steps: list[Step] = self._bound[key]
            return steps
        steps = []
        for block, held in zip(self.blocks, state, strict=True):
            assert isinstance(block, Block)
            steps.append(block.bind(x, held) or block.plain_step)
        return self._bound.keep(key, steps)

    def embed_next(self, tokens: Tensor) -> Tensor:
        """Embeddings [batch, width] of tokens [batch], one more of each sequence."""
        key = ("embedding", *conditions(tokens), self.embedding.weight.dtype)
        if key in self._bound:
            lookup = self._bound[key]
        else:
            lookup = self._bound.keep(key, bind_embedding(self.embedding, tokens))
        return self.embedding(tokens) if lookup is None else lookup(tokens)

    def next_logits(self, x: Tensor) -> Tensor:
        """Logits [batch, vocab] of one token each: final norm and head of the last block's x [batch, width]."""
        key = ("head", *conditions(x))
        if key in self._bound:
            head = self._bound[key]
        else:
            head = self._bound.keep(
                key, bind_head(self.norm, self.output, self.architecture.head_norm, self._plain_logits, x)
            )
        return self._plain_logits(x) if head is None else head(x.contiguous())

    def step_choices(self, tokens: Tensor, state: list[State]) -> dict[str, Choice]:
        """What computes `step` for tokens [batch] and states such as these, and why: the embedding, each kind of
        operator, the head."""
        x = self.embedding.weight.new_empty(len(tokens), self.architecture.width)
        found = {"embedding": embedding_choice(self.embedding, tokens)}
        for block, held in zip(self.blocks, state, strict=True):
            assert isinstance(block, Block)
            found[type(block.operator).__name__] = block.step_choice(x, held)
        return found | {"head": head_choice(self.norm, self.output, self.architecture.head_norm, self._plain_logits, x)}

    def _plain_logits(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))

    def hidden(self, tokens: Tensor, state: list[State] | None = None, position: int = 0) -> Tensor:
        """What the head reads: [batch, time, width] after the final norm, meta tokens cut off."""
        return add_norm(*self._body(tokens, state, position), self.norm)[1]

    def _body(self, tokens: Tensor, state: list[State] | None, position: int) -> tuple[Tensor, Tensor | None]:
        """What the last block leaves: see `Block.forward`. [batch, time, width], meta tokens cut off."""
        x, added = self.embedding(tokens), None
        meta = self.meta if position == 0 else None
        if meta is not None:
            x = torch.cat((meta.expand(len(tokens), -1, -1), x), dim=1)
        recompute = self.recompute and state is None and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            if recompute:  # which keeps what a block is given: one tensor, not two
                x = x if added is None else x + added
                x, added = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x, added = block(x, added, None if state is None else state[i], position)
        if meta is not None:
            x, added = x[:, len(meta) :], None if added is None else added[:, len(meta) :]
        return x, added

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of hidden [..., width], in float32 or wider."""
        weight = self.output.weight
        logits = F.linear(hidden, weight)
        logits = logits.to(wide(logits.dtype))
        if self.architecture.head_norm:
            logits = logits / weight.to(logits.dtype).norm(dim=-1)
        return logits
