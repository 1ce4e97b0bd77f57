"""`nfsearch bench training --model`: one training step of whole models, by the search and by libraries.

All start from the same weights, and their gradients are checked against float64 first. The search's step is one CUDA
graph with its own optimizers; the libraries' ends in PyTorch's fused AdamW, and is launched by the host, eagerly and
under torch.compile, or, compiled, is one CUDA graph as well.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nfsearch.bench.flops import training_flops
from nfsearch.bench.library_model import LibraryLM
from nfsearch.bench.ops import randomise
from nfsearch.bench.race import TOLERANCE, Absent, Contender, Group, Role, Setup, race_as_they_are, relative
from nfsearch.bench.schema import Bandwidth, Comparison, Ratio
from nfsearch.bench.tuning import tuned_together
from nfsearch.latency_lut.timing import Run
from nfsearch.ops import HybridLM
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.step import BEFORE_CAPTURE, Step, mean_loss, own_stream
from nfsearch.proxies.trainer import repeatable
from nfsearch.proxies.weight_norm import WeightNorm
from nfsearch.space import Architecture
from nfsearch.support.notes import listening

_RATE = 1e-4  # small: the same batch is learned again and again
_AT_ONCE = 4  # sequences, in float64
_VARIANTS = 64  # that dynamo may compile of one function: it meets a forward once for each place in the model
_DEEPER = 4  # errors of many layers add up, forward and backward: a whole model's tolerance over a product's

Loss = Callable[[Tensor, Tensor], Tensor]
BatchLoss = Callable[..., Tensor]  # the loss of the one batch, whatever is given


def bench_whole(
    architecture: Architecture, batch: int, sequence: int, setup: Setup, bandwidth: Bandwidth
) -> tuple[list[Comparison], list[Ratio]]:
    torch._dynamo.reset()
    found = race_as_they_are([_Whole(architecture, batch, sequence, setup).group()], setup, bandwidth)
    return found, _ratios(found[0])


def _ratios(found: Comparison) -> list[Ratio]:
    ours = next((e for e in found.entries if e.role == "ours" and e.median_us), None)
    ratios = []
    for entry in found.entries:
        if ours and ours.median_us and entry.median_us and entry is not ours:
            speedup = entry.median_us / ours.median_us
            spread = math.hypot((ours.iqr_us or 0) / ours.median_us, (entry.iqr_us or 0) / entry.median_us)
            names = {"model": f"{found.name}: {ours.name}", "reference": entry.name}
            ratios.append(Ratio(**names, speedup=speedup, spread=speedup * spread))
    return ratios


class _Whole:
    """A model's weights and one batch; each contender trains a copy."""

    def __init__(self, architecture: Architecture, batch: int, sequence: int, setup: Setup) -> None:
        torch.manual_seed(0)
        self.setup, self.device = setup, torch.device(setup.kind)
        self.settings = TrainingSettings(batch=batch, sequence=sequence)
        self.adamw = self.settings.model_copy(update={"optimizer": "adamw", "weight_norm": False})
        self.model = HybridLM(architecture).to(self.device)
        randomise(self.model)
        WeightNorm(self.model)()
        self.windows = torch.randint(architecture.vocab, (batch, sequence + 1), device=self.device)
        self.expected: tuple[Tensor, Tensor] | None = None
        self.first_calls: dict[str, float] = {}

    def group(self) -> Group:
        architecture, (batch, window) = self.model.architecture, self.windows.shape
        case = {
            "model": architecture.notation,
            "parameters": architecture.parameters,
            "width": architecture.width,
            "vocab": architecture.vocab,
            "sequence": window - 1,
            "batch": batch,
            "dtype": self.setup.dtype_name,
        }
        millions = f"{architecture.parameters / 1e6:.1f}M parameters"
        title = f"{architecture.notation}  width {architecture.width}  {millions}  {batch} x {window - 1} tokens"
        contenders = [
            self._ours("nfsearch", self.settings),
            self._ours("nfsearch, AdamW, no projection", self.adamw),
            self._library("library parts", lambda net: net, self._launched),
            self._library("library parts, compiled", self._compiled, self._launched),
            self._library("library parts, compiled, as one CUDA graph", self._graphable, self._stepping),
        ]
        flops = training_flops(architecture, window - 1) * batch * (window - 1)
        return Group(title, case, contenders, _DEEPER * TOLERANCE[self.setup.dtype], flops=flops)

    def _contender(
        self, name: str, role: Role, check: Callable[[], float], work: Callable[[], Run], path: Callable[[], str]
    ) -> Contender:
        return Contender(name, role, check, work, path, lambda: self.first_calls.get(name))

    def _ours(self, name: str, settings: TrainingSettings) -> Contender:
        def check() -> float:
            model = copy.deepcopy(self.model)
            with repeatable(self.device, 0):
                return self._error(name, model, lambda *_: mean_loss(model, self.windows))

        def work() -> Run:
            model = copy.deepcopy(self.model)
            with repeatable(self.device, 0):
                return self._stepping(model, lambda *_: mean_loss(model, self.windows), settings)

        return self._contender(name, "ours", check, work, lambda: f"the step of the search, {settings.optimizer}")

    def _library(
        self, name: str, wrap: Callable[[LibraryLM], Loss], make: Callable[[HybridLM, BatchLoss], Run]
    ) -> Contender:
        net: list[LibraryLM] = []
        runs: list[Loss] = []
        notes: dict[str, None] = {}

        def check() -> float:
            net.append(LibraryLM(copy.deepcopy(self.model), self.setup.kind))
            runs.append(wrap(net[0]))
            # What of a library dynamo cannot take apart is launched, with a warning, as at a break.
            with (
                torch._dynamo.config.patch(recompile_limit=_VARIANTS, suppress_errors=True),
                tuned_together(self.device),
            ):
                return self._error(name, net[0].model, runs[0])

        def work() -> Run:
            with listening() as said:
                run = make(net[0].model, lambda *_: self._loss(runs[0]))
            notes.update(said)
            return run

        return self._contender(name, "baseline", check, work, lambda: "; ".join([net[0].path, "AdamW", *notes]))

    def _compiled(self, net: LibraryLM) -> Loss:
        return self.setup.compiled(net, breaks=True)

    def _graphable(self, net: LibraryLM) -> Loss:
        if self.device.type != "cuda":
            raise Absent("CUDA graphs need a GPU")
        return self._compiled(net)

    def _launched(self, model: HybridLM, loss: BatchLoss) -> Run:
        """A step that the host launches."""
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=_RATE, fused=True)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            nn.utils.clip_grad_norm_(parameters, self.settings.clip)
            optimizer.step()

        return step

    def _stepping(self, model: HybridLM, loss: BatchLoss, settings: TrainingSettings | None = None) -> Run:
        """The step of the search, by default with AdamW and no projection, after its first calls: on CUDA one graph, or
        launched with a note where that cannot be captured."""
        with own_stream(self.device):
            eager = BEFORE_CAPTURE if self.device.type == "cuda" else math.inf
            step = Step(model, settings or self.adamw, eager, loss)
            for _ in range(BEFORE_CAPTURE + 1):
                step(self.windows, _RATE)
        return lambda: step(self.windows, _RATE)

    def _loss(self, run: Loss) -> Tensor:
        with torch.autocast(self.device.type, self.setup.dtype, enabled=self.setup.dtype != torch.float32):
            return run(self.windows[:, :-1], self.windows[:, 1:])

    def _error(self, name: str, model: HybridLM, run: Loss) -> float:
        """The larger of the loss's and that of all gradients together."""
        if self.expected is None:
            self.expected = self._exact()
        started = time.perf_counter()
        loss = self._loss(run)
        loss.backward()
        found = loss.detach(), _gradient(model)
        errors = [relative(a, b) for a, b in zip(found, self.expected, strict=True)]
        self.first_calls[name] = time.perf_counter() - started
        model.zero_grad(set_to_none=True)
        return max(errors) if not any(map(math.isnan, errors)) else math.nan

    def _exact(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient in float64, a few sequences at a time."""
        model = copy.deepcopy(self.model).double()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in self.windows.split(_AT_ONCE):
            loss = model.loss(part[:, :-1], part[:, 1:]) * (len(part) / len(self.windows))
            loss.backward()
            total += loss.detach()
        return total, _gradient(model)


def _gradient(model: HybridLM) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
