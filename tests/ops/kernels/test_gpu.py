"""On a CUDA device: the kernels against the float64 reference, step by step and as a captured graph."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from nfsearch.ops.checks import compile_together
from nfsearch.ops.forms import Step, named
from nfsearch.ops.kernels.decode import embedding
from nfsearch.ops.kernels.decode.attention import bind_attention
from nfsearch.ops.kernels.decode.projection import bind_head
from nfsearch.ops.layout import Layout
from nfsearch.ops.model import Block
from nfsearch.ops.operator import RMSNorm
from nfsearch.ops.rotary import rotate
from nfsearch.space import Layer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SMALL = 0.01  # inputs next to which the residual hides nothing of what the operator adds
LAYERS: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("F", {}, 1024),
    ("F", {"act": "relu2"}, 1536),
    ("D", {}, 1024),
    ("D", {"head_dim": 64}, 1536),
    ("D", {"head_dim": 256}, 768),
    ("D", {"neg_eigval": True}, 1024),
    ("C", {}, 1024),
    ("C", {"conv": 4}, 1288),
    ("M2", {}, 1024),
    ("M2", {}, 1536),
    ("M2", {"head_dim": 128, "state": 64}, 1536),
    ("M2", {"groups": 8}, 1024),
    ("M2", {"heads": 24, "head_dim": 80, "groups": 8}, 1536),
    ("GDN", {}, 1024),
    ("GDN", {"head_dim": 128}, 1536),
    ("GDN", {"head_dim": 128, "expand_v": 1, "heads": 16, "key_heads": 4}, 1024),
    ("GLA", {}, 1024),
    ("GLA", {"heads": 8}, 1024),
    ("A", {}, 1024),
    ("A", {"head_dim": 256, "kv_heads": 1}, 768),
    ("A", {"window": 7, "qk_norm": True, "head_dim": 64}, 1536),
    ("A", {"head_dim": 256, "heads": 8, "kv_heads": 2, "rope": 0.25, "gate": True, "qk_norm": True}, 1024),
    ("A", {"head_dim": 64, "heads": 12, "kv_heads": 4, "rope": 0.75, "gate": True, "qk_norm": "all"}, 1024),
    ("A", {"rope": 0, "window": 7, "gate": True}, 1024),
)


def make(name: str, settings: dict[str, Any], width: int, dtype: torch.dtype) -> Block:
    torch.manual_seed(0)
    with torch.device("cuda"):
        block = Block(Layer.of(name, **settings), width, 1e-6)
    for p in block.parameters():
        if p.ndim == 1:
            p.add_(0.2 * torch.randn_like(p))
    return block.to(dtype)


def bind(block: Block, x: torch.Tensor, state: dict[str, torch.Tensor]) -> Step:
    """The block's kernels, not checked."""
    fused = named(block.operator.fused_step)
    step: Step = fused.bind(block.operator, block.norm, x, state, **fused.choices(state))
    return step


@pytest.fixture(autouse=True)
def poison() -> None:
    """What is allocated next is full of NaN, so that a result not written shows."""
    sizes = [1 << power for power in range(9, 21)] * 8 + [16 << 20] * 4
    held = [torch.full((size // 4,), float("nan"), device="cuda") for size in sizes]
    del held


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize(("name", "settings", "width"), LAYERS)
@torch.no_grad()
def test_agrees_with_float64(
    name: str, settings: dict[str, Any], width: int, dtype: torch.dtype, bound: float, batch: int
) -> None:
    block, time = make(name, settings, width, dtype), 20
    x = SMALL * torch.randn(batch, time, width, device="cuda", dtype=dtype)
    exact, wide = copy.deepcopy(block).double(), x.double()
    expected = wide + exact.operator.reference(exact.norm(wide))
    state = block.operator.init_state(batch, time, device="cuda", dtype=dtype)
    for key in state.keys() & {"keys", "values"}:
        state[key].fill_(float("nan"))  # slots not written yet must not be read
    position = torch.zeros((), dtype=torch.int64, device="cuda")
    outputs, step = [], bind(block, x[:, 0], state)
    for row in x.unbind(1):
        outputs.append(step(row.contiguous(), state, position))
        position += 1
    got = torch.stack(outputs, 1).double()
    assert (got - expected).norm() / expected.norm() < bound


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_the_rows_of_the_weight(dtype: torch.dtype, batch: int) -> None:
    weight = torch.randn(1000, 1536, device="cuda", dtype=dtype)
    tokens = torch.randint(1000, (batch, 2), device="cuda")[:, 1]
    lookup = embedding.bind(torch.nn.Embedding.from_pretrained(weight), tokens)
    assert torch.equal(lookup(tokens), weight[tokens])


@pytest.mark.parametrize("unit_rows", [False, True])
@pytest.mark.parametrize("batch", [1, 8, 9, 64, 200])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@torch.no_grad()
def test_the_head_agrees_with_float64(dtype: torch.dtype, bound: float, batch: int, unit_rows: bool) -> None:
    x, norm, weight = (torch.randn(*shape, device="cuda").to(dtype) for shape in ((batch, 840), (840,), (3001, 840)))
    exact = torch.nn.functional.rms_norm(x.double(), (840,), norm.double(), 1e-6) @ weight.double().T
    if unit_rows:
        exact /= weight.double().norm(dim=1)
    before, embedded = RMSNorm(840, 1e-6).to("cuda", dtype), torch.nn.Embedding.from_pretrained(weight)
    before.weight.copy_(norm)
    got = bind_head(before, embedded, unit_rows, x)(x)
    assert got.dtype == torch.float32
    assert (got - exact).norm() / exact.norm() < bound


@pytest.mark.parametrize(("name", "settings", "width"), LAYERS)
@torch.no_grad()
def test_a_captured_step_is_the_eager_one(name: str, settings: dict[str, Any], width: int) -> None:
    """Four blocks in a row, many steps: launches that overlap must not read what is not there yet."""
    blocks = [make(name, settings, width, torch.bfloat16) for _ in range(4)]
    rows = torch.randn(100, 1, width, device="cuda", dtype=torch.bfloat16)
    x, position = rows[0].clone(), torch.zeros((), dtype=torch.int64, device="cuda")
    states = [b.operator.init_state(1, len(rows), device="cuda", dtype=torch.bfloat16) for b in blocks]
    steps = [bind(block, x, state) for block, state in zip(blocks, states, strict=True)]

    def run() -> torch.Tensor:
        y = x
        for step, state in zip(steps, states, strict=True):
            y = step(y, state, position)
        position.add_(1)
        return y

    def restart() -> None:
        position.zero_()
        for state in states:
            for tensor in state.values():
                tensor.zero_()

    expected = []
    for row in rows:
        x.copy_(row)
        expected.append(run())
        torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run()
    restart()
    for row, wanted in zip(rows, expected, strict=True):
        x.copy_(row)
        graph.replay()
        assert torch.equal(y, wanted)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize(("name", "settings", "width"), LAYERS)
@torch.no_grad()
def test_two_thousand_replayed_steps_do_not_drift(
    name: str, settings: dict[str, Any], width: int, dtype: torch.dtype, bound: float
) -> None:
    """Against the parallel form in float64; the last steps are as exact as those half-way, when the state is full."""
    block, time = make(name, settings, width, dtype), 2000
    rows = SMALL * torch.randn(1, time, width, device="cuda", dtype=dtype)
    exact = copy.deepcopy(block).double()
    expected = exact.operator(exact.norm(rows.double()))[0]
    state = block.operator.init_state(1, time, device="cuda", dtype=dtype)
    x, position = rows[:, 0].clone(), torch.zeros((), dtype=torch.int64, device="cuda")
    step = bind(block, x, state)
    step(x, state, position)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step(x, state, position)
        position.add_(1)
    position.zero_()
    for tensor in state.values():
        tensor.zero_()
    outputs = []
    for row in rows.unbind(1):
        x.copy_(row)
        graph.replay()
        outputs.append((y - x)[0].double())
    error = (torch.stack(outputs) - expected).norm(dim=1) / expected.norm(dim=1).mean()
    assert error[-200:].mean() < bound
    assert error[-200:].mean() < max(1.3 * error[900:1100].mean(), 1e-6)  # what float32 itself is off by


@pytest.mark.parametrize(("batch", "slots", "kv_heads"), [(1, 8193, 4), (1, 32769, 4), (8, 8193, 4), (32, 1025, 4),
                                                            (32, 8193, 2), (40, 9000, 8)])  # fmt: skip
def test_attention_shares_out_long_caches(batch: int, slots: int, kv_heads: int) -> None:
    """Every way of `tiling`: with one program for a head and several, with few tiles and many."""
    torch.manual_seed(0)
    heads, dim, position = 4 * kv_heads, 128, torch.tensor(slots - 1, device="cuda")
    keys, values = (torch.randn(batch, slots, kv_heads, dim, device="cuda").bfloat16() for _ in range(2))
    rows = torch.randn(batch, heads + 2 * kv_heads, dim, device="cuda").bfloat16()
    layout = Layout.of(q=heads * dim, k=kv_heads * dim, v=kv_heads * dim)
    found = bind_attention(rows.flatten(1), keys, layout, 1e4)(rows.flatten(1), keys, values, position)
    query, key, value = rows.double().split((heads, kv_heads, kv_heads), dim=1)
    query, key = (rotate(z[:, None], position[None], 1e4)[:, 0] for z in (query, key))
    for b in {0, batch // 2, batch - 1}:
        held = [torch.cat((z[b, :-1].double(), new[b, None])) for z, new in ((keys, key), (values, value))]
        k, v = (z.transpose(0, 1).repeat_interleave(4, 0) for z in held)  # [heads, slots, dim]
        scores = (k @ query[b, :, :, None])[..., 0] / dim**0.5
        expected = (scores.softmax(-1)[:, None] @ v)[:, 0].flatten()
        assert (found[b].double() - expected).norm() / expected.norm() < 1e-2


@triton.jit
def _add(x, MORE: tl.constexpr):
    tl.store(x, tl.load(x) + MORE)


def test_kernels_are_compiled_together_and_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, device="cuda")
    monkeypatch.setattr(_add.fn, "__module__", "nfsearch.ops")  # those of others are left alone
    monkeypatch.setattr(_add, "_fn_name", "nfsearch.ops._add")
    compile_together(lambda: [_add[(1,)](x, more) for more in (1, 2)], x.device)
    assert x.item() == 0
    compiled: list[object] = []
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **what: compiled.append(what))
    for more in (1, 2, 3):
        _add[(1,)](x, more)
    assert (x.item(), len(compiled)) == (6, 1)
