"""Single kernels of a decode step: a projection, and attention without its projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from nfsearch.bench.baselines import Attend, backend_name, flex, sdpa
from nfsearch.bench.race import TOLERANCE, Absent, Contender, Group, Role, Setup, links, relative
from nfsearch.latency_lut.timing import Run
from nfsearch.ops.attention import Attention
from nfsearch.ops.rotary import rotate
from nfsearch.space import Layer

Kernel = Callable[..., Tensor]
Makers = Mapping[str, tuple[Callable[[], Kernel], str]]  # by name: makes the kernel or raises Absent; what it is


def _contenders(makers: Makers, inputs: Sequence[tuple[Tensor, ...]], expected: Tensor) -> list[Contender]:
    """One for each maker, the first being ours; `expected` of the first inputs."""

    def contender(name: str, make: Callable[[], Kernel], path: str) -> Contender:
        made = cache(make)

        def work() -> Run:
            kernel = made()
            return lambda: [kernel(*held) for held in inputs]

        role: Role = "ours" if name == "nfsearch" else "baseline"
        return Contender(name, role, lambda: relative(made()(*inputs[0]), expected), work, lambda: path)

    return [contender(name, make, path) for name, (make, path) in makers.items()]


def _need_triton(setup: Setup) -> None:
    if setup.kind != "cuda":
        raise Absent("our kernels need CUDA")
    if not find_spec("triton"):
        raise Absent("triton is not installed")


def projection(rows: int, columns: int, batch: int, setup: Setup) -> Group:
    """A matrix times one or a few vectors, nothing fused."""
    x = torch.randn(batch, columns, device=setup.kind).to(setup.dtype)
    size = rows * columns * setup.dtype.itemsize
    matrices = [torch.randn(rows, columns, device=setup.kind).to(setup.dtype) for _ in range(links(size, setup.kind))]

    def ours() -> Kernel:
        _need_triton(setup)
        from nfsearch.ops.kernels.decode.gemv import MAX_BATCH, gemv

        if batch > MAX_BATCH:
            raise Absent(f"our kernel takes up to {MAX_BATCH} sequences; more go to cuBLAS")
        return gemv

    makers: Makers = {
        "nfsearch": (ours, "gemv kernel"),
        "F.linear": (lambda: F.linear, "cuBLAS"),
        "F.linear, compiled": (lambda: setup.compiled(_linear), "torch.compile"),
    }
    contenders = _contenders(makers, [(x, w) for w in matrices], x.double() @ matrices[0].double().T)
    case = {"rows": rows, "columns": columns, "batch": batch, "dtype": setup.dtype_name}
    name = f"projection {columns} to {rows}  batch {batch}"
    return Group(name, case, contenders, TOLERANCE[setup.dtype], size, len(matrices))


def _linear(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w)


def attention_alone(layer: Layer, width: int, context: int, batch: int, setup: Setup) -> Group:
    """Without projections. Ours turns the query and appends to the cache; the others are given both done."""
    op = Attention(width, **{**layer.shape(width), "gate": False})  # which is of the projections
    heads, kv_heads, dim = op.heads, op.kv_heads, op.head_dim
    slots = context + 1 if op.window is None else min(context + 1, op.window)
    shape = (batch, slots, kv_heads, dim)
    size = 2 * batch * slots * kv_heads * dim * setup.dtype.itemsize
    draw = partial(torch.randn, device=setup.kind)
    caches = [(draw(shape).to(setup.dtype), draw(shape).to(setup.dtype)) for _ in range(links(size, setup.kind))]
    rows = draw(batch, heads + 2 * kv_heads, dim).to(setup.dtype)
    position = torch.tensor(context, device=setup.kind)
    query, key, value = rows.double().split((heads, kv_heads, kv_heads), dim=1)
    query, key = (rotate(z[:, None], position[None], op.rope_base, op.rotary)[:, 0] for z in (query, key))
    for keys, values in caches:
        keys[:, context % slots], values[:, context % slots] = key.to(setup.dtype), value.to(setup.dtype)
    expected = sdpa(None)(query[:, :, None], *(held.double().transpose(1, 2) for held in caches[0])).flatten(1)
    turned = query.to(setup.dtype)[:, :, None]

    def ours() -> Kernel:
        _need_triton(setup)
        from nfsearch.ops.kernels.decode.attention import bind_attention

        flat = rows.flatten(1)
        attend = bind_attention(flat, caches[0][0], op.layout, op.rope_base, rotary=op.rotary)
        return lambda k, v: attend(flat, k, v, position)

    def theirs(make: Callable[[], Attend]) -> Kernel:
        attend = make()
        return lambda k, v: attend(turned, k.transpose(1, 2), v.transpose(1, 2)).flatten(1)

    chosen = backend_name(op, batch, slots, setup.kind, setup.dtype)
    makers: Makers = {
        "nfsearch": (ours, "split-KV kernel, with rotation and append"),
        "SDPA, default": (partial(theirs, lambda: sdpa(None)), chosen),
        "SDPA, cuDNN": (partial(theirs, lambda: sdpa(SDPBackend.CUDNN_ATTENTION)), "CUDNN_ATTENTION"),
        "SDPA, FA2": (partial(theirs, lambda: sdpa(SDPBackend.FLASH_ATTENTION)), "FLASH_ATTENTION"),
        "flex-decoding": (partial(theirs, lambda: flex(setup)), "torch.compile"),
    }
    case = {"heads": heads, "kv_heads": kv_heads, "head_dim": dim, "context": context, "batch": batch}
    name = f"attention alone  {heads} heads, {kv_heads} kv of {dim}  context {context}  batch {batch}"
    return Group(
        name,
        case | {"dtype": setup.dtype_name},
        _contenders(makers, caches, expected),
        TOLERANCE[setup.dtype],
        size,
        len(caches),
    )
