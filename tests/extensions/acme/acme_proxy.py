"""A proxy with two metrics that trains nothing: the loss and the norm of its gradient where training would start."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from nfsearch.proxies import Evaluation, Fidelity, Job, ProxySettings, Report
from nfsearch.space import SearchSpace
from nfsearch.support.metrics import NATS, Measurement, Metric


class AtStartSettings(ProxySettings):
    """How much is looked at."""

    kind: str = "at_start"
    tokens: int = Field(default=256, gt=1, description="random tokens that the loss is taken on")


class AtStart:
    """Loss and gradient of the fresh model on random tokens."""

    Settings = AtStartSettings
    metrics: ClassVar[Sequence[Metric]] = (Metric("start_loss", NATS), Metric("gradient"))
    vocab = 64

    def __init__(self, settings: AtStartSettings, device: str) -> None:
        self.settings, self.device = settings, device
        self.fidelity = Fidelity(settings.tokens, settings.tokens, 1, "nothing is trained", "random")

    def check(self, space: SearchSpace) -> None:
        """Every model has a loss."""

    def start(self) -> None:
        import torch  # noqa: F401

    def evaluate(self, job: Job, report: Report) -> Evaluation:
        import torch

        from nfsearch.ops import HybridLM

        began = time.monotonic()
        with torch.random.fork_rng():
            torch.manual_seed(job.seed)
            model = HybridLM(job.architecture).to(self.device)
            tokens = torch.randint(self.vocab, (1, job.fidelity.tokens + 1), device=self.device)
        loss = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        report(job.fidelity.tokens, loss.item())
        norm = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
        found = {"start_loss": Measurement(loss.item()), "gradient": Measurement(norm)}
        return Evaluation(found, job.fidelity.tokens, time.monotonic() - began, ((job.fidelity.tokens, loss.item()),))
