"""Runs each block's kernels in Triton's interpreter against the float64 reference."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from nfsearch.ops import chooser, steps
from nfsearch.ops.forms import named
from nfsearch.ops.kernels.decode import attention, deltanet, embedding, gemv
from nfsearch.ops.kernels.decode.projection import bind_head
from nfsearch.ops.layout import Layout
from nfsearch.ops.model import Block, HybridLM
from nfsearch.ops.operator import RMSNorm, build_operator
from nfsearch.ops.rotary import rotate
from nfsearch.space import Architecture, Layer

# name: (operator, settings, width, batch, steps); widths and head counts that are no powers of two among them
CASES: dict[str, tuple[str, dict[str, Any], int, int, int]] = {
    "swiglu": ("F", {}, 64, 3, 2),
    "relu2": ("F", {"act": "relu2"}, 96, 1, 2),
    "many sequences": ("F", {}, 32, gemv.MAX_BATCH + 1, 2),
    "delta": ("D", {"head_dim": 32}, 32, 2, 5),
    "delta, three heads": ("D", {"head_dim": 16, "conv": 3}, 48, 1, 5),
    "delta, many sequences": ("D", {"head_dim": 16}, 16, gemv.MAX_BATCH + 1, 2),
    "delta, negative eigenvalues": ("D", {"head_dim": 16, "neg_eigval": True}, 32, 2, 5),
    "gated short convolution": ("C", {}, 48, 2, 5),
    "gated short convolution, many sequences": ("C", {"conv": 4}, 136, gemv.MAX_BATCH + 1, 2),
    "mamba2": ("M2", {"head_dim": 32, "state": 16}, 32, 1, 5),
    "mamba2, groups": ("M2", {"head_dim": 8, "state": 8, "groups": 2}, 32, 2, 4),
    "mamba2, groups of 24": ("M2", {"heads": 6, "head_dim": 8, "state": 8, "groups": 2}, 32, 1, 3),
    "gated delta": ("GDN", {"head_dim": 16}, 32, 1, 5),
    "gla": ("GLA", {"heads": 2}, 64, 2, 4),
    "gla, heads of 24": ("GLA", {"heads": 2}, 48, 1, 3),
    "gated delta, many sequences": ("GDN", {"head_dim": 16}, 16, gemv.MAX_BATCH + 1, 1),
    "gla, many sequences": ("GLA", {"heads": 2}, 32, gemv.MAX_BATCH + 1, 2),
    "mamba2, many sequences": ("M2", {"head_dim": 32, "state": 16}, 32, gemv.MAX_BATCH + 1, 1),
    "mamba2, groups, many sequences": ("M2", {"head_dim": 8, "state": 8, "groups": 2}, 16, gemv.MAX_BATCH + 1, 1),
    "relu2, many sequences": ("F", {"act": "relu2"}, 48, gemv.MAX_BATCH + 1, 1),
    "attention": ("A", {"head_dim": 32}, 128, 2, 5),
    "attention, partial rotation": (
        "A",
        {"head_dim": 32, "heads": 6, "kv_heads": 2, "rope": 0.75, "gate": True, "qk_norm": "all"},
        64,
        2,
        4,
    ),
    "attention, a quarter turns": ("A", {"head_dim": 32, "rope": 0.25, "gate": True, "qk_norm": True}, 64, 1, 4),
    "attention, no positions": (
        "A",
        {"head_dim": 32, "rope": 0, "kv_heads": 1, "window": 3, "qk_norm": "all"},
        96,
        1,
        5,
    ),
    "gated delta, shared keys": ("GDN", {"head_dim": 16, "heads": 6, "key_heads": 2}, 32, 1, 5),
    "attention, window": ("A", {"head_dim": 32, "kv_heads": 1, "window": 3, "qk_norm": True}, 96, 1, 8),
}


def error(name: str, settings: dict[str, Any], width: int, batch: int, time: int) -> float:
    """Relative error of what the block adds to its input, over `time` tokens."""
    block = Block(Layer.of(name, **settings), width, 1e-6)
    for p in block.parameters():
        p.add_(0.3 * torch.randn_like(p)) if p.ndim == 1 else p.mul_(3)
    x = torch.randn(batch, time, width)
    exact = copy.deepcopy(block).double()
    expected = exact.operator.reference(exact.norm(x.double()))
    state = block.operator.init_state(batch, time + 2, device="cpu", dtype=torch.float32)
    for key in state.keys() & {"keys", "values"}:
        state[key].fill_(float("nan"))  # slots not written yet must not be read
    position = torch.zeros((), dtype=torch.int64)
    fused = named(type(block.operator).fused_step)
    run = fused.bind(block.operator, block.norm, x[:, 0], state, **fused.choices(state))
    outputs = []
    for row in x.unbind(1):
        row = row.contiguous()
        outputs.append(run(row, state, position) - row)
        position += 1
        for name, parameter in list(block.named_parameters()):  # what was bound follows weights that are replaced
            owner, _, leaf = name.rpartition(".")
            setattr(block.get_submodule(owner), leaf, torch.nn.Parameter(parameter.clone()))
            parameter.fill_(float("nan"))
    return float((torch.stack(outputs, 1) - expected).norm() / expected.norm())


def shared_cache_error(gates: int, position_at: int = 49) -> float:
    """Of attention whose cache of 50 slots three programs share out, several tiles to each; the last slot is new."""
    keys, values = torch.randn(2, 50, 2, 32), torch.randn(2, 50, 2, 32)
    rows, position = torch.randn(2, 8 + gates, 32), torch.tensor(position_at)
    query, key, value, gate = rows.double().split((4, 2, 2, gates), dim=1)
    query, key = (rotate(z[:, None], position[None], 1e4)[:, 0] for z in (query, key))
    exact = [held.double() for held in (keys, values)]
    exact[0][:, 49], exact[1][:, 49] = key, value
    scores = torch.einsum("bhd,bthd->bht", query, exact[0].repeat_interleave(2, 2)) / 32**0.5
    expected = torch.einsum("bht,bthd->bhd", scores.softmax(-1), exact[1].repeat_interleave(2, 2))
    expected = (expected * gate.sigmoid() if gates else expected).flatten(1)
    gate_rows = {"gate": gates * 32} if gates else {}
    how = attention.Tiling(tile=16, splits=3, warps=4, stages=3, early=False)
    attend = attention.bind_attention(
        rows.flatten(1), keys, Layout.of(q=4 * 32, k=2 * 32, v=2 * 32, **gate_rows), 1e4, how=how
    )
    found = attend(rows.flatten(1), keys, values, position)
    return float((found - expected).norm() / expected.norm())


def head_error(unit_rows: bool, batch: int = 2) -> float:
    x, norm, w = torch.randn(batch, 40), torch.randn(40), torch.randn(19, 40)
    wide = [t.double() for t in (x, norm, w)]
    expected = torch.nn.functional.rms_norm(wide[0], (40,), wide[1], 1e-6) @ wide[2].T
    if unit_rows:
        expected /= wide[2].norm(dim=1)
    before, embedded = RMSNorm(40, 1e-6), torch.nn.Embedding.from_pretrained(w)
    before.weight.copy_(norm)
    return float((bind_head(before, embedded, unit_rows, x)(x) - expected).norm() / expected.norm())


def embedding_error() -> float:
    """Of a column of tokens, the first and last of the vocabulary among them; one outside it must give NaN."""
    w, tokens = torch.randn(19, 40), torch.tensor([[0, 3], [18, 3], [7, 3], [19, 3]])[:, 0]
    found = embedding.bind(torch.nn.Embedding.from_pretrained(w), tokens)(tokens)
    assert found[3].isnan().all()
    return float((found[:3] - w[tokens[:3]]).norm())


def narrow_state_error() -> float:
    """What keeping the state in bfloat16 costs."""
    operator = build_operator(Layer.of("D", head_dim=16), 32)
    rows = torch.randn(5, 1, operator.layout.total)
    operator.conv.normal_()
    position = torch.zeros((), dtype=torch.int64)
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        state = operator.init_state(1, 5, device="cpu", dtype=torch.float32)
        state["state"] = state["state"].to(dtype)
        token = deltanet.bind_token(operator, rows[0], state)
        position.zero_()
        for row in rows:
            y = token(row, state, position)
            position += 1
        outputs.append(y)
    return float((outputs[1] - outputs[0]).norm() / outputs[0].norm())


def model_error() -> float:
    """Of a whole model's steps as the chooser takes them, checks included, against its own in PyTorch."""
    layers = "D[head_dim=16] F M2[head_dim=16,state=16] A[head_dim=32] GDN[head_dim=16] GLA[heads=2] C F[act=relu2]"
    model = HybridLM(Architecture.parse(layers, width=32, vocab=24, head_norm=True))
    tokens = torch.randint(24, (4, 2))
    results = []
    with pytest.MonkeyPatch.context() as patch:
        for fused in (False, True):
            if fused:
                patch.setattr(chooser, "on_cuda", lambda x: True)
                patch.setattr(steps, "on_cuda", lambda x: True)
                patch.setattr(chooser, "missing", lambda: "")
                model._bound.clear()
            state = model.init_state(2, 4)
            found = [model.step(row, state, torch.tensor(position)) for position, row in enumerate(tokens)]
            results.append(torch.cat([z.flatten() for z in (*found, *(z for held in state for z in held.values()))]))
        choices = model.step_choices(tokens[0], state)
    assert {choice.runs for choice in choices.values()} == {"triton"}, choices
    assert len(model._bound) == 3  # the blocks', the embedding, the head: bound for the first token, and no more
    return float((results[1] - results[0]).norm() / results[0].norm())


@torch.no_grad()
def report() -> dict[str, Any]:
    torch.manual_seed(0)
    errors = {case: error(*setup) for case, setup in CASES.items()}
    errors |= {"attention, shared cache": shared_cache_error(0), "attention, shared cache, gate": shared_cache_error(4)}
    errors["attention, a million tokens on"] = shared_cache_error(0, 1_000_049)
    errors |= {"head": head_error(False), "head, unit rows": head_error(True)}
    errors["embedding"] = embedding_error()
    errors["model"] = model_error()
    errors["head, many sequences"] = head_error(True, gemv.MAX_BATCH + 1)
    return {"errors": errors, "narrow state": narrow_state_error()}
