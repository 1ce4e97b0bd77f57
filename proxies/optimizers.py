"""What turns gradients into updates: Muon for the matrices of the operators, AdamW for all else; or AdamW alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nfsearch.ops.layout import Layout
from nfsearch.ops.model import HybridLM
from nfsearch.proxies.settings import TrainingSettings

_BETAS = (0.9, 0.95)
_MOMENTUM = 0.95
_ADAM_SHARE = 0.15  # of Muon's rate: what AdamW gives embedding, head, norms, convolutions and biases beside it
_QUINTIC = (3.4445, -4.7750, 2.0315)  # of Newton and Schulz's iteration, tuned by Jordan for a steep start
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised before they are added (Jordan et al. 2024; Liu et al., arXiv
    2502.16982), each part of a projection for itself. An update has length sqrt(max(1, rows / columns)) in the spectral
    norm, whatever the width, so that one rate serves all widths.

    All matrices of one shape are handled at once; torch.optim.Muon takes them one after the other, and its rate is a
    number, which a CUDA graph would keep.
    """

    def __init__(self, matrices: Iterable[tuple[Tensor, tuple[int, ...]]], lr: Tensor, weight_decay: float) -> None:
        """`matrices` [rows, columns] with the rows of each of their parts; `lr` is a scalar tensor."""
        matrices = list(matrices)
        self._rows = {id(matrix): rows for matrix, rows in matrices}
        super().__init__([matrix for matrix, _ in matrices], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            matrices = [matrix for matrix in group["params"] if matrix.grad is not None]
            gradients = [matrix.grad for matrix in matrices]
            for matrix in matrices:
                if "momentum" not in self.state[matrix]:
                    self.state[matrix]["momentum"] = torch.zeros_like(matrix)
            momenta = [self.state[matrix]["momentum"] for matrix in matrices]
            torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
            ahead = torch._foreach_lerp(gradients, momenta, _MOMENTUM)  # Nesterov's
            if group["weight_decay"]:
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            parts = [part for matrix in matrices for part in matrix.split(self._rows[id(matrix)])]
            moves = [part for matrix, move in zip(matrices, ahead, strict=True) for part in self._split(matrix, move)]
            self._add(parts, moves, group["lr"])

    def _split(self, matrix: Tensor, move: Tensor) -> tuple[Tensor, ...]:
        return move.split(self._rows[id(matrix)])

    @staticmethod
    def _add(parts: list[Tensor], moves: list[Tensor], rate: Tensor) -> None:
        """Adds the orthogonalised moves times -rate to the parts, in place."""
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for i, part in enumerate(parts):
            by_shape[part.shape].append(i)
        for (rows, columns), members in by_shape.items():
            # Copied into the dtype of the products, and scaled out of it: a pass less over memory each.
            stacked = torch.empty(len(members), rows, columns, device=rate.device, dtype=_dtype_on(rate.device))
            torch._foreach_copy_(list(stacked.unbind()), [moves[i] for i in members])
            update = orthogonalised(stacked) * (-rate.float() * max(1.0, rows / columns) ** 0.5).view(1, 1, 1)
            torch._foreach_add_([parts[i] for i in members], list(update.unbind()))


def orthogonalised(matrices: Tensor) -> Tensor:
    """About U V^T of each of the matrices U S V^T [n, rows, columns]: singular values come out between 0.7 and 1.2, in
    bf16 on CUDA, in float32 on a CPU."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.to(_dtype_on(matrices.device))
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) * 1.02 + 1e-7)
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if x.is_cuda:  # where baddbmm would copy x before the product
            factor.diagonal(dim1=1, dim2=2).add_(a)
            x = factor @ x
        else:
            x = torch.baddbmm(x, factor, x, beta=a)
    return x.mT if tall else x


def _dtype_on(device: torch.device) -> torch.dtype:
    """Of the products."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


class Optimizers:
    """Those of a model, as one."""

    def __init__(self, model: HybridLM, settings: TrainingSettings) -> None:
        device = model.embedding.weight.device
        # Tensors, because a graph would keep numbers. AdamW reads its own as float32 on CUDA, as float64 on a CPU.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self._rates = [torch.zeros((), dtype=dtype, device=device)]
        self._shares = [1.0]
        matrices = _matrices(model)
        others = [p for p in model.parameters() if id(p) not in {id(matrix) for matrix, _ in matrices}]
        self.each: list[torch.optim.Optimizer] = []
        if settings.optimizer == "muon":
            if matrices:
                self.each.append(Muon(matrices, self._rates[0], settings.weight_decay))
            self._rates.append(torch.zeros((), dtype=dtype, device=device))
            self._shares.append(_ADAM_SHARE)
            groups = [{"params": others, "weight_decay": 0.0}]
        else:
            decayed = [matrix for matrix, _ in matrices]
            groups = [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ]
        groups = [group for group in groups if group["params"]]
        self.each.append(torch.optim.AdamW(groups, lr=self._rates[-1], betas=_BETAS, fused=True))
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}

    def step(self) -> None:
        for one in self.each:
            one.step()

    def set_rate(self, rate: float) -> None:
        """Of the next steps, those of a graph that was captured before included."""
        for tensor, share in zip(self._rates, self._shares, strict=True):
            tensor.fill_(rate * share)

    def zero_grad(self) -> None:
        for one in self.each:
            one.zero_grad(set_to_none=True)

    def capturable(self, value: bool) -> None:
        for group in self.each[-1].param_groups:
            group["capturable"] = value  # AdamW wants it in a capture, and warns of it outside

    def state(self) -> dict[str, Tensor]:
        """What they keep, by name; empty before the first step."""
        return {
            f"{key}.{self._names[id(parameter)]}": tensor
            for one in self.each
            for parameter, kept in one.state.items()
            for key, tensor in kept.items()
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state` gave, in place where there is something already: a graph works on it."""
        here = self.state()
        for one in self.each:
            for group in one.param_groups:
                for parameter in group["params"]:
                    self._load(one, parameter, state, here)

    def _load(
        self, one: torch.optim.Optimizer, parameter: Tensor, state: dict[str, Tensor], here: dict[str, Tensor]
    ) -> None:
        name = self._names[id(parameter)]
        for key in ("momentum",) if isinstance(one, Muon) else ("step", "exp_avg", "exp_avg_sq"):
            if f"{key}.{name}" not in state:  # it never had a gradient
                continue
            tensor = state[f"{key}.{name}"]
            if f"{key}.{name}" in here:
                here[f"{key}.{name}"].copy_(tensor)
            else:
                one.state[parameter][key] = tensor.to(parameter.device, copy=True)


def _matrices(model: HybridLM) -> list[tuple[Tensor, tuple[int, ...]]]:
    """The weights of all linear layers, with the rows of each part where their operator's layout says them; not the
    embedding, head, norms, convolutions, biases or meta tokens."""
    rows: dict[int, tuple[int, ...]] = {}
    for operator in model.operators():
        layout = getattr(operator, "layout", None)
        for name in operator.row_normalised:
            weight = operator.get_parameter(name)
            if isinstance(layout, Layout) and layout.total == len(weight):
                rows[id(weight)] = layout.sizes
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return [(weight, rows.get(id(weight), (len(weight),))) for weight in weights]
