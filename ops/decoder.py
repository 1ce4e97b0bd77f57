"""Generation: read the prompt in parallel, then one token at a time; on CUDA a whole token is one CUDA graph."""

from __future__ import annotations

import torch
from torch import Tensor

from nfsearch.ops.model import HybridLM

_WARM_UP = 3  # steps before capture, in which kernels are compiled and libraries make their workspaces


class Decoder:
    """Decodes `batch` sequences of up to `max_length` text tokens in step with each other.

    Owns the state, in the model's dtype, and the position. On CUDA the step is captured once, here; it then reads the
    model's parameters where they lie, so that weights may change in place but must not be replaced.
    """

    def __init__(self, model: HybridLM, batch: int, max_length: int) -> None:
        self.model, self.batch, self.max_length = model, batch, max_length
        device = model.embedding.weight.device
        self.state = model.init_state(batch, max_length)
        self.position = torch.zeros((), dtype=torch.int64, device=device)  # meta tokens counted
        self.length = 0  # text tokens read, known without asking the device
        self._tokens = torch.zeros(batch, dtype=torch.int64, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._capture()

    def reset(self) -> None:
        """Forgets everything read."""
        for held in self.state:
            for tensor in held.values():
                tensor.zero_()
        self.position.zero_()
        self.length = 0

    def prefill(self, tokens: Tensor) -> Tensor:
        """Starts anew with the prompt [batch, time]; logits [batch, vocab] after it. Raises ValueError if too long."""
        time = tokens.shape[1]
        if not 0 < time <= self.max_length:
            raise ValueError(f"a prompt of {time} tokens, but this decoder takes 1 to {self.max_length}")
        self.reset()
        logits = self.model.prefill(tokens, self.state)
        self.position.fill_(self.model.architecture.meta_tokens + time)
        self.length = time
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """Logits [batch, vocab] after one more token each [batch]. On CUDA the next step overwrites them.

        Raises ValueError if there is no room for another token.
        """
        if not 0 < self.length < self.max_length:
            raise ValueError(f"{self.length} of {self.max_length} tokens read: prefill first, or make a longer decoder")
        self.length += 1
        self._tokens.copy_(tokens)
        if self._graph is None:
            return self._step()
        self._graph.replay()
        return self._logits

    def generate(
        self, prompt: Tensor, n: int, temperature: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """The `n` tokens that follow the prompt [batch, time]: int64 [batch, n].

        Temperature 0 takes the likeliest token; above it, tokens are drawn with `generator`.
        """
        logits = self.prefill(prompt)
        chosen = [_choose(logits, temperature, generator)]
        for _ in range(n - 1):
            chosen.append(_choose(self.step(chosen[-1]), temperature, generator))
        return torch.stack(chosen, dim=1)

    def _step(self) -> Tensor:
        logits = self.model.step(self._tokens, self.state, self.position)
        self.position.add_(1)
        return logits

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self.position.zero_()
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        self.position.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._logits = self._step()
        self._graph = graph
        self.reset()


def _choose(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    """Token ids [batch] from logits [batch, vocab]."""
    if temperature <= 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
