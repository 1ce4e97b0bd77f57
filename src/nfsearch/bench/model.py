"""`nfsearch bench model`: the time of one token of whole models, all of them measured in turn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.bench.baselines import Parts, library_parts, weights
from nfsearch.bench.ops import bytes_moved, plain_step, randomise
from nfsearch.bench.race import TOLERANCE, Absent, Contender, Group, Role, Setup, race, relative, release
from nfsearch.bench.schema import Bandwidth, Comparison, Ratio
from nfsearch.latency_lut.timing import Run
from nfsearch.ops import Block, HybridLM, State
from nfsearch.space import Architecture

_FLASH = "(D F M2 F A F M2 F){%d} (D F M2 F){%d}"
_NEMOTRON = {"nemotron-flash-1b": (2048, 2), "nemotron-flash-3b": (3072, 3)}
_QWEN3 = {"qwen3-0.6b": 1024, "qwen3-1.7b": 2048}  # width
Bound = Callable[[list[State]], Run]  # from state to a step on it, which returns logits
Wrap = Callable[[Callable[[list[State]], Tensor]], Callable[[list[State]], Tensor]]

_CPU_MEMORY = 3 << 30  # bytes that the largest batch of a dry run may take
_MARGIN = 2 << 30  # bytes of a device's memory that stay free of state: workspaces, fragments
_DEEPER = 2  # errors of many layers add up: a whole model's tolerance over a block's


def read_model(source: str, width: int | None) -> HybridLM:
    """Freshly initialised: a name, the YAML file of an architecture, or notation (which needs a width). ValueError."""
    if source in _NEMOTRON:
        size, repeats = _NEMOTRON[source]
        notation = _FLASH % (repeats, repeats)
        return HybridLM(Architecture.parse(notation, width=size, vocab=131072, meta_tokens=256, head_norm=True))
    if source in _QWEN3:
        return qwen3(_QWEN3[source])
    if Path(source).suffix in (".yaml", ".yml"):
        from nfsearch.export import load_architecture

        return HybridLM(load_architecture(source))
    if width is None:
        known = ", ".join((*_NEMOTRON, *_QWEN3))
        raise ValueError(f"{source!r} is none of {known} and no YAML file; as notation it needs --width")
    return HybridLM(Architecture.parse(source, width=width))


def qwen3(width: int, layers: int = 28, heads: int = 16, kv_heads: int = 8, head_dim: int = 128) -> HybridLM:
    """The shape of Qwen3-0.6B (width 1024) and 1.7B (2048)."""
    one = f"A[heads={heads}, head_dim={head_dim}, kv_heads={kv_heads}, qk_norm=true, rope_base=1e6] F"
    return HybridLM(Architecture.parse(f"({one}){{{layers}}}", width=width, vocab=151936))


def bench_model(
    sources: Sequence[str], width: int | None, context: int, batch: int | None, setup: Setup, bandwidth: Bandwidth
) -> tuple[list[Comparison], list[Ratio]]:
    """The first model is the one that the others are references for. Without a batch, each model decodes as many
    sequences as fit into the device's memory, by nfsearch alone, one model after the other. ValueError for a bad
    source."""
    torch.manual_seed(0)

    def subject(source: str) -> _Subject:
        with torch.device(setup.kind):
            model = read_model(source, width)
        randomise(model)
        return _Subject(source, model.to(setup.dtype).eval(), context, batch, setup)

    if batch:
        found = race([subject(source).group() for source in sources], setup, bandwidth)
    else:
        found = [race([subject(source).group()], setup, bandwidth)[0] for source in sources]
    return found, _ratios(found)


def _ratios(found: Sequence[Comparison]) -> list[Ratio]:
    first, *others = found
    ours = next((e.median_us for e in first.entries if e.role == "ours"), None)
    return [
        Ratio(
            model=f"{first.case['model']}: nfsearch",
            reference=f"{other.case['model']}: {entry.name}",
            speedup=entry.median_us / other.case["batch"] / (ours / first.case["batch"]),
        )
        for other in others
        for entry in other.entries
        if entry.median_us and ours
    ]


class _Subject:
    """A model with the state it has after `context` tokens. Its contenders share weights and state.

    `kept` is the state that some of the sequences (`rows`) start a check from: all of them, or the first and the last
    of as many as fit into memory.
    """

    @torch.no_grad()
    def __init__(self, name: str, model: HybridLM, context: int, batch: int | None, setup: Setup) -> None:
        self.name, self.model, self.context, self.setup = name, model, context, setup
        self.past = context + model.architecture.meta_tokens
        self.position = torch.tensor(self.past, device=setup.kind)
        self.kept, kept_tokens = self._random(batch or 2)
        self.expected = self._exact(kept_tokens)
        release(setup.kind)
        if batch:
            self.state, self.tokens = [dict(held) for held in self.kept], kept_tokens
            self.kept = [{name: tensor.clone() for name, tensor in held.items()} for held in self.kept]
            self.rows = torch.arange(batch, device=setup.kind)
        else:
            largest = self._largest()
            self.state, self.tokens = self._random(largest)
            self.rows = torch.tensor([0, largest - 1], device=setup.kind)
            self.tokens[self.rows] = kept_tokens
        self.alone = batch is None

    def _random(self, batch: int) -> tuple[list[State], Tensor]:
        """A state and the tokens that come next, [batch]."""
        state = self.model.init_state(batch, self.context + 1)
        for held in state:
            for tensor in held.values():
                tensor.normal_()
        return state, torch.randint(self.model.architecture.vocab, (batch,), device=self.setup.kind)

    def _exact(self, tokens: Tensor) -> Tensor:
        """The logits that the kept state leads to, in float64."""
        model = copy.deepcopy(self.model).double()
        state = [{name: tensor.double() for name, tensor in held.items()} for held in self.kept]
        x = model.embedding(tokens)
        for block, held in zip(model.blocks, state, strict=True):
            assert isinstance(block, Block)
            x = plain_step(block, x, held, self.position)
        return model.head(model.norm(x))

    def _largest(self) -> int:
        """How many sequences fit: their state, their logits (made in two precisions, and normalised), and a margin for
        what else a step holds."""
        architecture = self.model.architecture
        with torch.device("meta"):
            state = self.model.init_state(1, self.context + 1, device="meta")
        each = sum(tensor.nbytes for held in state for tensor in held.values())
        each += 12 * architecture.vocab + 64 * architecture.width
        free = torch.cuda.mem_get_info()[0] if self.setup.kind == "cuda" else _CPU_MEMORY
        return max(2, int((0.97 * free - _MARGIN) // each))

    @property
    def blocks(self) -> list[Block]:
        return [block for block in self.model.blocks if isinstance(block, Block)]

    def group(self) -> Group:
        architecture, setup = self.model.architecture, self.setup
        contenders = [
            self._contender("nfsearch", "ours", self._ours, self._ours_path),
        ]
        baselines = [
            self._contender("plain step", "baseline", lambda: self._plain(_as_it_is)),
            self._contender("plain step, compiled", "baseline", lambda: self._plain(setup.compiled)),
            self._contender("library parts", "baseline", lambda: self._library(_as_it_is), self._library_path),
            self._contender(
                "library parts, compiled", "baseline", lambda: self._library(setup.compiled), self._library_path
            ),
        ]
        size = bytes_moved([self.model], self.state) - (self.model.meta.nbytes if self.model.meta is not None else 0)
        if self.model.own_head is not None:
            size -= self.model.embedding.weight.nbytes  # a row for each sequence alone is read
        case = {
            "model": self.name,
            "layers": architecture.notation if self.name not in _QWEN3 else "28 x (attention, FFN)",
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "width": architecture.width,
            "vocab": architecture.vocab,
            "context": self.context,
            "batch": len(self.tokens),
            "dtype": setup.dtype_name,
        }
        title = f"{self.name}  context {self.context}  batch {len(self.tokens)}"
        if not self.alone:
            contenders += baselines
        return Group(title, case, contenders, _DEEPER * TOLERANCE[setup.dtype], size)

    def _contender(self, name: str, role: Role, make: Callable[[], Bound], path: Callable[[], str] = str) -> Contender:
        made = cache(make)
        return Contender(name, role, lambda: self._error(made()), lambda: made()(self.state), path)

    def _error(self, bind: Bound) -> float:
        for _ in range(2):  # kernels tune themselves on their first call
            for held, kept in zip(self.state, self.kept, strict=True):
                for name, tensor in kept.items():
                    held[name].index_copy_(0, self.rows, tensor)
            logits = bind(self.state)()
        assert isinstance(logits, Tensor)
        return relative(logits[self.rows], self.expected)

    def _ours(self) -> Bound:
        return lambda state: lambda: self.model.step(self.tokens, state, self.position)

    def _ours_path(self) -> str:
        with torch.no_grad():
            found = self.model.step_choices(self.tokens, self.state)
        plain = [f"plain {name}: {choice.reason}" for name, choice in found.items() if choice.runs == "torch"]
        return "; ".join(plain) or "fused kernels"

    def _plain(self, wrap: Wrap) -> Bound:
        model, blocks = self.model, self.blocks

        def step(state: list[State]) -> Tensor:
            x = model.embedding(self.tokens)
            for block, held in zip(blocks, state, strict=True):
                x = plain_step(block, x, held, self.position)
            return model.head(model.norm(x))

        run = wrap(step)
        return lambda state: lambda: run(state)

    def _parts(self, block: Block) -> Parts:
        """The first, strongest choice."""
        for make in library_parts(block, self.past, self.setup).values():
            return make()
        raise Absent(f"no library serves {type(block.operator).__name__}")

    def _library_path(self) -> str:
        return "; ".join(dict.fromkeys(self._parts(block).path for block in self.blocks))

    def _library(self, wrap: Wrap) -> Bound:
        model, blocks, tokens = self.model, self.blocks, self.tokens
        parts = [self._parts(block) for block in blocks]
        named = [weights(block) for block in blocks]
        embedding, weight = model.embedding.weight.detach(), model.output.weight.detach()
        norm, width, eps = model.norm.weight.detach(), model.architecture.width, model.norm.eps
        scale = weight.float().norm(dim=-1).reciprocal() if model.architecture.head_norm else None

        def step(state: list[State]) -> Tensor:
            x = F.embedding(tokens, embedding)
            for part, w, held in zip(parts, named, state, strict=True):
                x = part.step(x, w, held)
            logits = F.linear(F.rms_norm(x, (width,), norm, eps), weight).float()
            return logits if scale is None else logits * scale

        run = wrap(step)

        def bind(state: list[State]) -> Run:
            held = [part.held(b.operator, s) for part, b, s in zip(parts, blocks, state, strict=True)]
            return lambda: run(held)

        return bind


def _as_it_is(step: Callable[[list[State]], Tensor]) -> Callable[[list[State]], Tensor]:
    return step
