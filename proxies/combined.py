"""Several proxies as one: a candidate's loss and what tasks say of it, together on one front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsearch.proxies.bounds import Bounds
from nfsearch.proxies.fidelity import Fidelity
from nfsearch.proxies.job import Evaluation, Job, Report
from nfsearch.proxies.proxy import Foresees, Keeps, Proxy, Reads, TokenSource, Trains
from nfsearch.space import SearchSpace
from nfsearch.support.metrics import Metric

if TYPE_CHECKING:
    from nfsearch.ops.model import HybridLM


class Combined:
    """The main proxy, which decides the vocabulary and the budget, whose curve is reported and whose weights are
    exported, and others beside it. `combined` makes the right one."""

    def __init__(self, main: Proxy, others: Mapping[str, Proxy]) -> None:
        self.main, self.others = main, others

    @property
    def metrics(self) -> Sequence[Metric]:
        return [metric for proxy in (self.main, *self.others.values()) for metric in proxy.metrics]

    @property
    def vocab(self) -> int:
        return self.main.vocab

    @property
    def fidelity(self) -> Fidelity:
        """The main proxy's, whose recipe tells those of the others as well."""
        found = self.main.fidelity
        beside = [f"{name}: {each.fidelity} on {each.fidelity.data}" for name, each in self.others.items()]
        return replace(found, recipe="; ".join([found.recipe, *beside]))

    @property
    def sources(self) -> Sequence[TokenSource]:
        """See `Reads`."""
        return self.main.sources if isinstance(self.main, Reads) else ()

    def check(self, space: SearchSpace) -> None:
        for proxy in (self.main, *self.others.values()):
            proxy.check(space)

    def bound(self, bounds: Bounds) -> None:
        """See `Foresees`."""
        for proxy in (self.main, *self.others.values()):
            if isinstance(proxy, Foresees):
                proxy.bound(bounds)

    def start(self) -> None:
        for proxy in (self.main, *self.others.values()):
            proxy.start()

    def evaluate(self, job: Job, report: Report) -> Evaluation:
        """The main evaluation, with what the others found. While these work, the last report is made again and again:
        their losses are no part of the curve, and who listens may end them as well. Where the main proxy has no curve
        they report as they do alone."""
        found = self.main.evaluate(self.main_job(job), report)
        parts, curve = [found], found.curve

        def at_work(tokens: int, loss: float) -> None:
            report(*(curve[-1] if curve else (tokens, loss)))

        for proxy in self.others.values():
            parts.append(proxy.evaluate(Job(job.architecture, proxy.fidelity, job.seed), at_work))
        return replace(
            found,
            metrics={name: value for part in parts for name, value in part.metrics.items()},
            seconds=sum(part.seconds for part in parts),
            notes=tuple(note for part in parts for note in part.notes),
        )

    def main_job(self, job: Job) -> Job:
        """The main proxy's part of a job. Raises ValueError for one of another fidelity, its budget apart."""
        tokens = job.fidelity.tokens
        if job.fidelity != replace(self.fidelity, tokens=tokens):
            raise ValueError(f"these settings cannot train at {job.fidelity}")
        return Job(job.architecture, replace(self.main.fidelity, tokens=tokens), job.seed)


class CombinedTraining(Combined):
    """One whose main proxy trains the candidates themselves: see `Trains`, and `Keeps` for what it keeps."""

    main: Any

    @property
    def tokenizer(self) -> str:
        found: str = self.main.tokenizer
        return found

    def train(self, job: Job, report: Report | None = None) -> tuple[HybridLM, Evaluation]:
        """The main proxy's model and its evaluation alone."""
        found: tuple[HybridLM, Evaluation] = self.main.train(self.main_job(job), report)
        return found

    def keep_in(self, folder: Path) -> None:
        if isinstance(self.main, Keeps):
            self.main.keep_in(folder)

    def kept(self, job: Job) -> Path | None:
        return self.main.kept(self.main_job(job)) if isinstance(self.main, Keeps) else None

    @property
    def most_kept(self) -> float:
        return self.main.most_kept if isinstance(self.main, Keeps) else 0.0

    def weights(self, job: Job) -> HybridLM | None:
        return self.main.weights(self.main_job(job)) if isinstance(self.main, Keeps) else None


def combined(main: Proxy, others: Mapping[str, Proxy]) -> Proxy:
    """The main proxy with others, by name, beside it; itself where there are none."""
    if not others:
        return main
    kind = CombinedTraining if isinstance(main, Trains) else Combined
    return kind(main, others)  # type: ignore[return-value]  # metrics of an object, not of its class
