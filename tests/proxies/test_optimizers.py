from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nfsearch.ops.model import HybridLM
from nfsearch.proxies.data import Corpus, batch
from nfsearch.proxies.optimizers import Muon, Optimizers, orthogonalised
from nfsearch.proxies.step import Step
from nfsearch.proxies.weight_norm import WeightNorm
from tests.proxies.small import EVERY_MIXER, SMALL, architecture


class Counted(TorchDispatchMode):
    """Counts operations."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 40, 16), (1, 16, 16)])
def test_orthogonalising_keeps_the_directions_and_levels_the_lengths(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(shape) * torch.logspace(-3, 3, shape[0])[:, None, None]
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    found = orthogonalised(matrices)
    within = u.mT @ found @ v.mT  # diagonal, if the singular vectors are kept
    assert (within - torch.diag_embed(torch.diagonal(within, dim1=1, dim2=2))).abs().max() < 1e-3
    singular = torch.linalg.svdvals(found)
    assert singular.min() > 0.4
    assert singular.max() < 1.3


def test_muon_is_torchs_where_a_matrix_is_one_part() -> None:
    """On a CPU torch iterates in bf16, so the two are alike and not the same."""
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.randn(12, 20)) for _ in range(2))
    theirs.data.copy_(ours.data)
    start = ours.detach().clone()
    mine = Muon([(ours, (12,))], torch.tensor(0.1), 0.1)
    other = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, momentum=0.95)
    for _ in range(4):
        gradient = torch.randn(12, 20)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        other.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.05 * moved


def test_each_part_of_a_projection_is_orthogonalised_for_itself() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(24, 16))
    weight.grad = torch.randn(24, 16)
    weight.grad[:8] *= 1000  # would drown the others
    Muon([(weight, (8, 16))], torch.tensor(1.0), 0.0).step()
    for part in weight.detach().split((8, 16)):
        assert torch.linalg.svdvals(part).min() > 0.4


def test_muon_moves_the_operators_matrices_and_adamw_the_rest() -> None:
    model = HybridLM(replace(architecture(EVERY_MIXER, meta_tokens=3), tied_head=False))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for settings in (SMALL, SMALL.model_copy(update={"optimizer": "adamw", "weight_decay": 0.1})):
        optimizers = Optimizers(model, settings)
        groups = [group for one in optimizers.each for group in one.param_groups]
        matrices, others = ({names[id(p)] for p in group["params"]} for group in groups)
        assert all(parameter.ndim == 2 for parameter in groups[0]["params"])
        assert {"embedding.weight", "own_head.weight", "meta", "norm.weight", "blocks.0.norm.weight"} <= others
        assert not any("qkv" in name for name in others)
        assert len(matrices) + len(others) == len(names)
        assert groups[1]["weight_decay"] == 0.0
        assert groups[0]["weight_decay"] == settings.weight_decay


def test_micro_batches_add_up_to_the_whole(corpus: Corpus) -> None:
    windows = batch(corpus.tokens("train"), 0, 0, 6, SMALL.sequence)
    found = []
    for micro in (None, 2, 4):
        torch.manual_seed(0)
        model = HybridLM(architecture(EVERY_MIXER)).double()
        step = Step(model, SMALL.model_copy(update={"batch": 6, "micro_batch": micro}), math.inf)
        losses = [step(windows, 1e-2) for _ in range(2)]
        found.append([*losses, *(parameter.detach() for parameter in model.parameters())])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_outputs_of_deep_models_are_projected_to_shorter_columns() -> None:
    model = HybridLM(architecture("F F F F"))
    WeightNorm(model, "depth")()
    for operator in model.operators():
        torch.testing.assert_close(operator.get_parameter("down.weight").norm(dim=0), torch.full((96,), 0.5))
        torch.testing.assert_close(operator.get_parameter("gate_up.weight").norm(dim=1), torch.ones(192))


def test_matrices_of_one_shape_are_projected_together() -> None:
    """However many layers there are, so many kernels: a small matrix alone takes as long to launch as to scale."""
    calls = []
    for layers in ("F A[head_dim=16]", "(F A[head_dim=16]){3}"):
        project = WeightNorm(HybridLM(architecture(layers)))
        with Counted() as counted:
            project()
        calls.append(counted.calls)
    assert calls[0] == calls[1]


def test_blocks_computed_again_train_the_same_and_keep_less(corpus: Corpus) -> None:
    windows = batch(corpus.tokens("train"), 0, 0, 6, SMALL.sequence)
    found, kept = [], []

    def keep(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.nbytes
        return tensor

    for recompute in (False, True):
        torch.manual_seed(0)
        model = HybridLM(architecture(f"({EVERY_MIXER}){{2}}", meta_tokens=3))
        step = Step(model, SMALL.model_copy(update={"batch": 6, "micro_batch": 4, "recompute": recompute}), math.inf)
        losses = [step(windows, 1e-2) for _ in range(3)]
        found.append([*losses, *(parameter.detach() for parameter in model.parameters())])
        kept.append(0)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.loss(*(torch.from_numpy(each) for each in (windows[:, :-1], windows[:, 1:])))
    assert kept[1] < kept[0] / 5
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
