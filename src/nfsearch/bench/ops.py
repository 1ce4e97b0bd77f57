"""`nfsearch bench ops`: one decode step of each block; then its projections and its attention alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial

import torch
from torch import Tensor, nn

from nfsearch.bench.baselines import Parts, Step, library_parts, weights
from nfsearch.bench.kernels import attention_alone, projection
from nfsearch.bench.race import TOLERANCE, Contender, Group, Role, Setup, links, race, relative, release
from nfsearch.bench.schema import Bandwidth, Comparison
from nfsearch.latency_lut.timing import Run
from nfsearch.ops import Block, State
from nfsearch.ops.ffn import FeedForward
from nfsearch.ops.operator import build_operator
from nfsearch.space import Layer

_SMALL = 0.01  # of the input: next to it the residual hides nothing of what the operator adds

Link = Callable[[Tensor], Tensor]
Bind = Callable[[Block, State], Link]


PARTS = ("blocks", "attention", "projections")


def bench_ops(
    layers: Sequence[Layer],
    widths: Sequence[int],
    contexts: Sequence[int],
    batches: Sequence[int],
    parts: Sequence[str],
    setup: Setup,
    bandwidth: Bandwidth,
) -> Iterator[Comparison]:
    """Every layer at every width, batch and (where there is a cache) context; attention without its projections; then
    the projections. `parts` of PARTS says which of the three."""
    projections: dict[tuple[int, int, int], None] = {}
    for width in widths:
        for layer in layers:
            projections |= {(*shape, batch): None for shape in _projections(layer, width) for batch in batches}
            for batch in batches:
                for context in contexts if layer.cost(width).cache_per_token else contexts[:1]:
                    torch._dynamo.reset()  # its limit of variants counts per function
                    if "blocks" in parts:
                        yield _block(layer, width, context, batch, setup, bandwidth)
                    if "attention" in parts and layer.op == "A":
                        yield from race([attention_alone(layer, width, context, batch, setup)], setup, bandwidth)
    if "projections" in parts:
        for rows, columns, batch in projections:
            torch._dynamo.reset()
            yield from race([projection(rows, columns, batch, setup)], setup, bandwidth)


def _block(layer: Layer, width: int, context: int, batch: int, setup: Setup, bandwidth: Bandwidth) -> Comparison:
    chain = _Chain.of(layer, width, context, batch, setup)
    (found,) = race([chain.group(str(layer))], setup, bandwidth)
    del chain
    release(setup.kind)
    return found


def _projections(layer: Layer, width: int) -> list[tuple[int, int]]:
    """Shapes of the matrices into and out of the operator."""
    with torch.device("meta"):
        linears = [m for m in build_operator(layer, width).modules() if isinstance(m, nn.Linear)]
    found = [(m.out_features, m.in_features) for m in linears]
    return [shape for shape in found if width in shape]


def bytes_moved(modules: Sequence[nn.Module], states: Sequence[State]) -> int:
    """What one token has to move: weights and state read once, recurrent states (`state`) written too. What is written
    besides, one slot of a cache, is not worth counting."""
    total = sum(p.numel() * p.element_size() for module in modules for p in module.parameters())
    for state in states:
        for name, tensor in state.items():
            total += tensor.numel() * tensor.element_size() * (2 if name == "state" else 1)
    return total


def randomise(module: nn.Module) -> None:
    """Makes norms' weights and other vectors differ from what they start as, so that a forgotten one shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))


def plain_step(block: Block, x: Tensor, state: State, position: Tensor) -> Tensor:
    """The block's step as the operator itself computes it."""
    return x + block.operator.step(block.norm(x), state, position)


def plain_bind(position: Tensor) -> Bind:
    return lambda block, state: lambda x: plain_step(block, x, state, position)


def library_bind(make: Callable[[], Parts], wrap: Callable[[Step], Step] = lambda step: step) -> Bind:
    """Raises Absent where the library cannot run. `wrap` may compile its step."""
    parts = make()
    step = wrap(parts.step)

    def bind(block: Block, state: State) -> Link:
        held, named = parts.held(block.operator, state), weights(block)
        return lambda x: step(x, named, held)

    return bind


@dataclass
class _Chain:
    """Blocks with weights and states of their own, run one after the other on what the one before gave."""

    blocks: list[Block]
    states: list[State]
    x: Tensor  # [batch, width]
    context: int
    setup: Setup

    @classmethod
    @torch.no_grad()
    def of(cls, layer: Layer, width: int, context: int, batch: int, setup: Setup) -> _Chain:
        torch.manual_seed(0)
        x = torch.randn(batch, width, device=setup.kind).to(setup.dtype) * _SMALL
        found = cls([], [], x, context, setup)
        found._add(layer)
        for _ in range(links(found.bytes, setup.kind) - 1):
            found._add(layer)
        return found

    def _add(self, layer: Layer) -> None:
        kind, dtype = self.setup.kind, self.setup.dtype
        with torch.device(kind):
            block = Block(layer, self.x.shape[1], 1e-6)
        randomise(block)
        self.blocks.append(block.to(dtype).eval())
        state = block.operator.init_state(len(self.x), self.context + 1, device=kind, dtype=dtype)
        for tensor in state.values():
            tensor.normal_()
        self.states.append(state)

    @property
    def bytes(self) -> int:
        return bytes_moved(self.blocks[:1], self.states[:1])

    def group(self, name: str) -> Group:
        position = torch.tensor(self.context, device=self.setup.kind)
        block, batch, width = self.blocks[0], len(self.x), self.x.shape[1]

        def ours_path() -> str:
            with torch.no_grad():
                choice = block.step_choice(self.x, self.states[0])
            return f"plain step: {choice.reason}" if choice.runs == "torch" else "fused kernels"

        def plain_compiled() -> Bind:
            step = _FunctionalStep(block)
            run = self.setup.compiled(
                lambda named, x, state: torch.func.functional_call(step, named, (x, state, position))
            )
            return lambda block, state: partial(_swapped, run, _FunctionalStep(block).tensors(), state)

        contenders = [
            self._contender("nfsearch", "ours", lambda: lambda b, s: lambda x: b.step(x, s, position), ours_path),
            self._contender("plain step", "baseline", lambda: plain_bind(position)),
            self._contender("plain step, compiled", "baseline", plain_compiled),
        ]
        parts = {} if isinstance(block.operator, FeedForward) else library_parts(block, self.context, self.setup)
        for i, (label, make) in enumerate(parts.items()):  # an FFN's plain step is made of library parts only
            path, own = partial(_path, make), partial(_own_layout, make)
            contenders.append(self._contender(label, "baseline", partial(library_bind, make), path, own))
            if i == 0:
                compiled = partial(library_bind, make, self.setup.compiled)
                contenders.append(self._contender(f"{label}, compiled", "baseline", compiled, path, own))
        case = {"layer": name, "width": width, "context": self.context, "batch": batch, "dtype": self.setup.dtype_name}
        title = f"{name}  width {width}  context {self.context}  batch {batch}"
        return Group(title, case, contenders, TOLERANCE[self.setup.dtype], self.bytes, len(self.blocks))

    def _contender(
        self,
        name: str,
        role: Role,
        make: Callable[[], Bind],
        path: Callable[[], str] = str,
        own: Callable[[], frozenset[str]] = frozenset,
    ) -> Contender:
        made = cache(make)
        return Contender(name, role, lambda: self._error(made(), own()), lambda: self._run(made()), path)

    def _run(self, bind: Bind) -> Run:
        bound = [bind(block, state) for block, state in zip(self.blocks, self.states, strict=True)]

        def run() -> Tensor:
            x = self.x
            for link in bound:
                x = link(x)
            return x

        return run

    def _error(self, bind: Bind, own: frozenset[str]) -> float:
        """The largest of the output's and the state's errors, each against how much the step changed it. `own` is
        state that a library keeps in a layout of its own: later outputs depend on it, this comparison does not."""
        expected, changed = self._reference
        before = self.states[0]
        bind(self.blocks[0], _clone(before))(self.x)  # kernels tune themselves on their first call
        state = _clone(before)
        errors = [relative(bind(self.blocks[0], state)(self.x), expected, self.x)]
        for name in state.keys() - own:
            errors.append(relative(state[name], changed[name], before[name]))
        return max(errors) if not any(map(math.isnan, errors)) else math.nan

    @cached_property
    def _reference(self) -> tuple[Tensor, State]:
        block = copy.deepcopy(self.blocks[0]).double()
        state = {name: tensor.double() for name, tensor in self.states[0].items()}
        position = torch.tensor(self.context, device=self.setup.kind)
        return plain_step(block, self.x.double(), state, position), state


class _FunctionalStep(nn.Module):
    """The plain step with its weights as an input, so that it is compiled once for all blocks of a chain."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, state: State, position: Tensor) -> Tensor:
        return plain_step(self.block, x, state, position)

    def tensors(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.named_parameters()}


def _swapped(run: Callable[..., Tensor], named: dict[str, Tensor], state: State, x: Tensor) -> Tensor:
    return run(named, x, state)


def _clone(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


def _path(make: Callable[[], Parts]) -> str:
    return make().path


def _own_layout(make: Callable[[], Parts]) -> frozenset[str]:
    return make().own
