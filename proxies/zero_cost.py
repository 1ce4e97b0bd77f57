"""What is known of a candidate without training it, to compare other proxies with: see `ZeroCostProxy`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from nfsearch.proxies.fidelity import Fidelity
from nfsearch.proxies.job import Evaluation, Job, Report
from nfsearch.proxies.proxy import ProxySettings
from nfsearch.space import Architecture, SearchSpace
from nfsearch.support.metrics import Measurement, Metric

FLOPS, DEPTH, GRADIENT = Metric("flops_per_token"), Metric("depth"), Metric("gradient_norm")


class ZeroCostSettings(ProxySettings):
    """The batch that the gradient is taken on."""

    kind: str = "zero-cost"
    sequence: int = Field(default=512, gt=1, le=2**20, description="random tokens in a sequence; flops are at its end")
    batch: int = Field(default=8, gt=0, le=2**16, description="sequences")


class ZeroCostProxy:
    """FLOPs of a token (the last of a sequence), the number of operators, and the norm of the loss's gradient at the
    start, on random tokens (one of the measures of Abdelfattah et al., arXiv 2101.08134). The number of parameters is a
    metric of every run anyway.

    For comparison with other proxies: as an objective each of them has a trivial optimum.
    """

    Settings: ClassVar[type[ProxySettings]] = ZeroCostSettings
    metrics: ClassVar[Sequence[Metric]] = (FLOPS, DEPTH, GRADIENT)
    vocab = 2  # any that a candidate has will do

    def __init__(self, settings: ZeroCostSettings, device: str) -> None:
        self.settings, self.device = settings, device

    @property
    def fidelity(self) -> Fidelity:
        settings = self.settings
        precision = "bf16" if self.device == "cuda" else "fp32"
        return Fidelity(0, settings.sequence, settings.batch, f"gradient at the start, {precision}", "random tokens")

    def check(self, space: SearchSpace) -> None:
        """Every model has them."""

    def start(self) -> None:
        import nfsearch.proxies.trainer  # noqa: F401  (and with it torch)

    def evaluate(self, job: Job, report: Report) -> Evaluation:
        began = time.perf_counter()
        architecture = job.architecture
        found = {
            FLOPS.name: flops_per_token(architecture, self.settings.sequence),
            DEPTH.name: float(len(architecture.layers)),
            GRADIENT.name: self._gradient_norm(architecture, job.seed),
        }
        return Evaluation({name: Measurement(value) for name, value in found.items()}, 0, time.perf_counter() - began)

    def _gradient_norm(self, architecture: Architecture, seed: int) -> float:
        import torch

        from nfsearch.ops.model import HybridLM
        from nfsearch.proxies.step import mean_loss
        from nfsearch.proxies.trainer import repeatable

        device, shape = torch.device(self.device), (self.settings.batch, self.settings.sequence + 1)
        with repeatable(device, seed):
            model = HybridLM(architecture).to(device)
            mean_loss(model, torch.randint(architecture.vocab, shape, device=device)).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))


def flops_per_token(architecture: Architecture, past: int) -> float:
    """FLOPs of the forward pass for one more token after so many, meta tokens not counted: those of the operators, and
    two for each weight of the head."""
    context = past + architecture.meta_tokens
    head = 2 * architecture.vocab * architecture.width
    return float(head + sum(cost.flops(1, context) for cost in architecture.costs()))
