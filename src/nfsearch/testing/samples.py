"""What the suites search: a small space, costs that can be computed by hand, and a proxy that trains nothing."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from nfsearch.proxies import Evaluation, Fidelity, Job, ProxySettings, Report
from nfsearch.search import Budgets, Candidate, Limits, Problem, Proposal
from nfsearch.space import Architecture, SearchSpace, SpaceSettings
from nfsearch.support.metrics import NATS, SECONDS, Measurement, Metric

LOSS, TIME = Metric("loss", NATS), Metric("tpot", SECONDS)
FIDELITY = Fidelity(100, 10, 1, "none", "fake")


def small_space(**changes: Any) -> SearchSpace:
    """Of some thousands of members; `changes` are fields of the config's `space:` section."""
    fields = {"width": (128, 256), "layers": "(mixer F{0..2}){1..3} mixer{1..2}", "where": {"mixer": "D | M2 | A"}}
    return SpaceSettings.model_validate({**fields, **changes}).build(vocab=256)


def latency(architecture: Architecture) -> dict[str, Measurement]:
    """Half a microsecond for each layer and unit of width."""
    return {"tpot": Measurement(len(architecture.layers) * architecture.width * 5e-7, 1e-6)}


def problem(space: SearchSpace | None = None, most_seconds: float | None = None) -> Problem:
    """To minimise loss and time in the space, each token in at most so many seconds."""
    limits = Limits({} if most_seconds is None else {"tpot": most_seconds}, {"loss": LOSS, "tpot": TIME})
    return Problem(space or small_space(), Budgets(latency, limits), ("loss", "tpot"), FIDELITY)


def evaluation(loss: float) -> Evaluation:
    """One with this loss, reported twice on the way."""
    return Evaluation({"loss": Measurement(loss)}, 100, 0.1, ((50, loss + 1), (100, loss)))


def candidate(number: int, proposal: Proposal, loss: float | None) -> Candidate:
    """A finished one; failed if it has no loss."""
    if loss is None:
        return Candidate(number, proposal, "failed", None, 1.5, "the loss is nan", 2)
    return Candidate(number, proposal, "done", evaluation(loss), 0.5)


class SampleProxy:
    """Losses that depend on the job alone, reported twice. `deed` is done in each evaluation: it is given the job and
    what would be returned, and may return something else."""

    Settings: ClassVar[type[ProxySettings]] = ProxySettings
    metrics: ClassVar[Sequence[Metric]] = (LOSS,)
    vocab = 256
    fidelity = FIDELITY

    def __init__(self, deed: Callable[[Job, Evaluation], Evaluation] | None = None) -> None:
        self.deed = deed

    def check(self, space: SearchSpace) -> None:
        """It scores all there is."""

    def start(self) -> None:
        """Nothing has to be prepared."""

    def evaluate(self, job: Job, report: Report) -> Evaluation:
        found = evaluation(1 + zlib.crc32(f"{job.architecture} {job.seed}".encode()) / 2**32)
        for tokens, loss in found.curve:
            report(tokens, loss)
        return self.deed(job, found) if self.deed else found
