"""`nfsearch bench training`: forward and backward of each mixer, as training runs them (bf16 autocast on CUDA).

On CUDA each is timed twice: captured in a graph, as the search trains its candidates, and launched by the host kernel
by kernel, where a short sequence is over before the host has launched it.
"""

from __future__ import annotations

import copy
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nfsearch.bench.baselines import FLA_MODULES, need
from nfsearch.bench.ops import randomise
from nfsearch.bench.race import TOLERANCE, Contender, Group, Role, Setup, race_as_they_are, relative
from nfsearch.bench.schema import Bandwidth, Comparison
from nfsearch.latency_lut.timing import Run, prepared
from nfsearch.ops import Operator, build_operator, chunked
from nfsearch.ops.parallel import plain
from nfsearch.space import Layer

Launched = Literal["host", "graph"]
Functions = Mapping[str, Callable[..., tuple[Tensor, Tensor]]]


def mixer(op: str, width: int, head_dim: int) -> Layer:
    """The mixer of this name with keys of `head_dim` in each head. Raises ValueError if there is none."""
    settings = {"heads": max(1, width // (2 * head_dim))} if op == "GLA" else {"head_dim": head_dim}
    layer = Layer.of(op, **settings)
    layer.shape(width)
    return layer


def bench_training(
    layers: Sequence[Layer],
    width: int,
    sequences: Sequence[int],
    batch: int,
    setup: Setup,
    bandwidth: Bandwidth,
) -> Iterator[Comparison]:
    """Every layer at every sequence length."""
    for layer in layers:
        for sequence in sequences:
            case = _Case(layer, width, batch, sequence, setup)
            yield from race_as_they_are([case.group("host")], setup, bandwidth)
            if setup.kind == "cuda":
                yield from race_as_they_are(
                    [case.group("graph")], setup, bandwidth, lambda run: prepared(run, setup.kind)
                )


@dataclass
class _Way:
    """A way to run the operator: the functions that it is made to call, and the context around it."""

    name: str
    role: Role
    context: Callable[[], AbstractContextManager[Any]]
    path: Callable[[], str]  # asked after the first call: asking makes and checks the kernels, which is part of it
    first_call: float | None = None


class _Case:
    """An operator, one input and one gradient of its output."""

    def __init__(self, layer: Layer, width: int, batch: int, sequence: int, setup: Setup) -> None:
        torch.manual_seed(0)
        self.layer, self.setup = layer, setup
        with torch.device(setup.kind):
            self.operator = build_operator(layer, width)
        randomise(self.operator)
        self.x = torch.randn(batch, sequence, width, device=setup.kind, requires_grad=True)
        self.gradient = torch.randn(batch, sequence, width, device=setup.kind)
        self.gradient[:, 0] = 0  # the first output is (q . k) v, and its norm magnifies rounding where q . k is near 0
        self.expected: list[Tensor] = []
        self.ways = self._ways()

    def group(self, launched: Launched) -> Group:
        batch, sequence, width = self.x.shape
        case = {"layer": str(self.layer), "width": width, "sequence": sequence, "batch": batch, "launched": launched}
        title = f"{self.layer}  width {width}  sequence {sequence}  batch {batch}  launched by {launched}"
        contenders = [self._contender(way, launched) for way in self.ways]
        tolerance = 2 * TOLERANCE[self.setup.dtype]  # products of the backward pass add their own rounding
        return Group(title, case | {"dtype": self.setup.dtype_name}, contenders, tolerance)

    def _ways(self) -> list[_Way]:
        ours = _Way("nfsearch", "ours", nullcontext, self._path)
        if self.layer.op == "A":
            backends = {
                "cuDNN": SDPBackend.CUDNN_ATTENTION,
                "FA2": SDPBackend.FLASH_ATTENTION,
                "math": SDPBackend.MATH,
            }
            return [
                ours,
                *(_Way(f"SDPA, {name}", "baseline", partial(sdpa_kernel, b), str) for name, b in backends.items()),
            ]
        in_pytorch = partial(_calling, self.operator, _PLAIN)
        fla = partial(_calling, self.operator, _FLA, self.setup.kind)
        ways = [
            ours,
            _Way("chunked PyTorch", "baseline", in_pytorch, lambda: "nfsearch.ops.chunked"),
            _Way("fla-core", "baseline", fla, lambda: "fla-core's chunk kernels, tuned on their first call"),
        ]
        if self.layer.op == "M2":
            mamba = partial(_calling, self.operator, _MAMBA_SSM, self.setup.kind)
            ways.append(
                _Way("mamba-ssm", "baseline", mamba, lambda: "mamba-ssm's chunk scan (and a division before it)")
            )
        return ways

    def _path(self) -> str:
        with self._autocast():
            choice = self.operator.parallel_choice(self.x)
        return f"{choice.runs}: {choice.reason}"

    def _contender(self, way: _Way, launched: Launched) -> Contender:
        return Contender(
            way.name,
            way.role,
            lambda: self._error(way, launched),
            lambda: self._work(way),
            way.path,
            lambda: way.first_call if launched == "host" else None,
        )

    def _autocast(self) -> torch.autocast:
        dtype = self.setup.dtype
        return torch.autocast(self.setup.kind, dtype, enabled=dtype != torch.float32)

    def _work(self, way: _Way) -> Run:
        def run() -> None:
            with way.context():
                self._pass()

        return run

    def _pass(self) -> list[Tensor]:
        """The output, the input's gradient and the parameters' gradients."""
        with self._autocast():
            y = self.operator(self.x)
        gradients = torch.autograd.grad(y, (self.x, *self.operator.parameters()), self.gradient.to(y.dtype))
        return [y.detach(), *gradients]

    def _replayed(self) -> list[Tensor]:
        """What a captured pass leaves when it is replayed."""
        passes: list[list[Tensor]] = []
        prepared(lambda: passes.append(self._pass()), self.setup.kind)()
        return passes[-1]

    def _error(self, way: _Way, launched: Launched) -> float:
        """The largest of: the output's, the input gradient's, and that of all parameters' gradients together."""
        if not self.expected:
            self.expected = self._exact()
        started = time.perf_counter()
        with way.context():
            got = self._pass() if launched == "host" else self._replayed()
        if self.setup.kind == "cuda":
            torch.cuda.synchronize()
        if launched == "host":
            way.first_call = time.perf_counter() - started
        flat = [(_flat(z[2:]) if z[2:] else None, z[0], z[1]) for z in (got, self.expected)]
        errors = [relative(a, b) for a, b in zip(*flat, strict=True) if a is not None and b is not None]
        return max(errors) if not any(map(math.isnan, errors)) else math.nan

    def _exact(self) -> list[Tensor]:
        """In float64, one sequence at a time, so that it fits."""
        operator = copy.deepcopy(self.operator).double()
        outputs, inputs, total = [], [], [torch.zeros_like(p) for p in operator.parameters()]
        for x, gradient in zip(self.x.detach().double().split(1), self.gradient.double().split(1), strict=True):
            x.requires_grad_()
            with _calling(operator, _PLAIN) if self.layer.op != "A" else nullcontext():
                y = operator(x)
            first, *rest = torch.autograd.grad(y, (x, *operator.parameters()), gradient)
            outputs.append(y.detach())
            inputs.append(first)
            total = [a + b for a, b in zip(total, rest, strict=True)]
        return [torch.cat(outputs), torch.cat(inputs), *total]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in tensors])


# --- what the operators are made to call -----------------------------------------------------------------------------


@contextmanager
def _calling(operator: Operator, functions: Functions, kind: str = "") -> Iterator[None]:
    """Makes the operator call these instead of the choosing functions of the same names."""
    if functions is _FLA:
        need("fla-core", kind, *FLA_MODULES)
    if functions is _MAMBA_SSM:
        need("mamba-ssm", kind, "mamba_ssm", "einops", "triton")
    module = sys.modules[type(operator).__module__]
    (name,) = {name for name in functions if hasattr(module, name)}
    original = getattr(module, name)
    setattr(module, name, functions[name])
    try:
        yield
    finally:
        setattr(module, name, original)


def _plain(function: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda *inputs, like: plain(function, like, *inputs)


def _half(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    """In the dtype of products, which is autocast's where that is on."""
    kind = like.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
    return [tensor.to(dtype) for tensor in tensors]


@cache
def ask_fla_for_gated_gradients() -> None:
    """Raises RuntimeError where fla-core refuses them: of itself it says so only in the backward pass, after it has
    tuned its forward kernels for minutes."""
    from fla.ops.common.chunk_o import chunk_bwd_dqkwg

    nothing: Any = None
    with suppress(AttributeError, TypeError):  # where it does not refuse, it trips over what it is given
        chunk_bwd_dqkwg(nothing, nothing, nothing, nothing, nothing, nothing, g=torch.empty(0))


def _fla_delta(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor | None, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    q, k, v, beta = _half(like, q, k, v, beta)
    if log_decay is None:
        from fla.ops.delta_rule import chunk_delta_rule

        out, last = chunk_delta_rule(q=q, k=k, v=v, beta=beta, scale=1.0, initial_state=state, output_final_state=True)
    else:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule

        ask_fla_for_gated_gradients()
        out, last = chunk_gated_delta_rule(
            q=q, k=k, v=v, g=log_decay, beta=beta, scale=1.0, initial_state=state, output_final_state=True
        )
    return out, last


def _fla_gated_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    from fla.ops.gla import chunk_gla

    q, k, v = _half(like, q, k, v)
    out, last = chunk_gla(q=q, k=k, v=v, g=log_decay, scale=1.0, initial_state=state, output_final_state=True)
    return out, last


def _fla_shared_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    from fla.ops.simple_gla import chunk_simple_gla

    ask_fla_for_gated_gradients()
    q, k, v = _half(like, q, k, v)
    q, k = (z[:, :, None].expand(-1, -1, v.shape[2], -1).contiguous() for z in (q, k))
    out, last = chunk_simple_gla(q=q, k=k, v=v, g=log_decay, scale=1.0, initial_state=state, output_final_state=True)
    return out, last


def _mamba_ssm_shared_linear(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor | None, *, like: Tensor
) -> tuple[Tensor, Tensor]:
    """It multiplies its input by the step that it takes the decay from, so that has to be divided out before."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    step = -log_decay.float()
    q, k, v = _half(like, q[:, :, None], k[:, :, None], v / step[..., None])
    rate = -torch.ones(v.shape[2], device=v.device)
    first = None if state is None else state.mT
    out, last = mamba_chunk_scan_combined(
        v, step, rate, k, q, chunk_size=256, initial_states=first, return_final_states=True
    )
    return out, last.mT


_PLAIN: Functions = {
    "delta_rule": _plain(chunked.delta_rule),
    "gated_linear": _plain(chunked.gated_linear),
    "shared_linear": _plain(chunked.shared_linear),
}
_FLA: Functions = {
    "delta_rule": _fla_delta,
    "gated_linear": _fla_gated_linear,
    "shared_linear": _fla_shared_linear,
}
_MAMBA_SSM: Functions = {"shared_linear": _mamba_ssm_shared_linear}
