"""The recurrence cores where numbers are hard: strong decays, repeated keys, long sequences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nfsearch.ops import chunked


def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=dtype)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("strength", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("kind", ["delta", "shared", "gated"])
def test_no_decay_overflows(kind: str, strength: float) -> None:
    """Outputs and gradients stay finite and right in float32 however strong the decay."""
    batch, time, heads, key, value = 1, 100, 2, 4, 6
    shared = 1 if kind == "shared" else heads
    q, k, v = draw(batch, time, shared, key), draw(batch, time, shared, key), draw(batch, time, heads, value)
    k = k / k.norm(dim=-1, keepdim=True)
    decay = -strength * torch.rand(batch, time, heads, key if kind == "gated" else 1)
    beta = torch.rand(batch, time, heads)
    leaves = [x.requires_grad_() for x in (q, k, v, decay)]

    if kind == "delta":
        out, last = chunked.delta_rule(q, k, v, beta, decay[..., 0])
    elif kind == "shared":
        out, last = chunked.shared_linear(q[:, :, 0], k[:, :, 0], v, decay[..., 0])
    else:
        out, last = chunked.gated_linear(q, k, v, decay)

    state = torch.zeros(batch, heads, key, value, dtype=torch.float64)
    expected = torch.zeros(out.shape, dtype=torch.float64)
    for t in range(time):
        row_q, row_k, row_v, row_decay, row_beta = (x[:, t].detach().double() for x in (*leaves, beta))
        if kind == "delta":
            expected[:, t] = chunked.delta_rule_step(row_q, row_k, row_v, row_beta, row_decay[..., 0], state)
        else:
            expected[:, t] = chunked.linear_step(row_q, row_k, row_v, row_decay, state)

    # Accumulated logs of a million lose absolute precision in float32; what is left of such a decay is rounding.
    tolerance = 1e-4 if strength < 100 else 1e-2
    assert (out - expected).abs().max() / expected.abs().max() < tolerance
    assert (last - state).abs().max() / state.abs().max() < tolerance
    out.sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


def test_repeated_keys_are_solved_exactly() -> None:
    """The hardest system of the delta rule: one key again and again, written in full each time."""
    time = 200
    k = torch.ones(1, time, 1, 4) / 2
    v, beta = draw(1, time, 1, 3), torch.ones(1, time, 1)
    out, state = chunked.delta_rule(k, k, v, beta)
    assert torch.allclose(out, v, atol=1e-4)  # what was written last is what is read
    assert torch.allclose(state, k[:, 0, :, :, None] * v[:, -1, :, None], atol=1e-4)


@pytest.mark.parametrize("time", [1, 15, 16, 17, 64, 65])
@pytest.mark.parametrize("chunk", [1, 16, 64])
def test_any_chunk_size_gives_the_same(time: int, chunk: int) -> None:
    q, k, v = (draw(2, time, 2, 4, dtype=torch.float64) for _ in range(3))
    decay, fine = -torch.rand(2, time, 2, dtype=q.dtype), -torch.rand(2, time, 2, 4, dtype=q.dtype)
    state = draw(2, 2, 4, 4, dtype=q.dtype)
    for got, expected in (
        (chunked.delta_rule(q, k, v, decay + 1, decay, state, chunk=chunk),
         chunked.delta_rule(q, k, v, decay + 1, decay, state, chunk=33)),
        (chunked.shared_linear(q[:, :, 0], k[:, :, 0], v, decay, state, chunk=chunk),
         chunked.shared_linear(q[:, :, 0], k[:, :, 0], v, decay, state, chunk=33)),
        (chunked.gated_linear(q, k, v, fine, state, chunk=chunk, sub=4),
         chunked.gated_linear(q, k, v, fine, state, chunk=33, sub=5)),
    ):  # fmt: skip
        for a, b in zip(got, expected, strict=True):
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)
