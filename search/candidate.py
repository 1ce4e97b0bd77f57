"""One evaluated job: what the study keeps of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

from nfsearch.proxies import Evaluation, Fidelity, Job
from nfsearch.space import Architecture
from nfsearch.support.metrics import Measurements

Answers = Mapping[str, Any]  # question name -> answer, in the order asked
State = Literal["done", "stopped", "failed"]


@dataclass(frozen=True)
class Proposal:
    """A job that a strategy wants done, and where its architecture came from."""

    index: int  # its place in the sequence of proposals; with several workers not its place among the finished
    job: Job
    answers: Answers
    origin: str  # "known", "random", "mutation:<kind>", "crossover" or what another strategy says
    generation: int = 0
    parents: tuple[int, ...] = ()  # candidate numbers
    costs: Measurements = field(default_factory=dict)  # what is known without any training
    refused: Mapping[str, int] = field(default_factory=dict)  # reason -> drafts refused before this one was found
    confirms: int | None = None  # the candidate of which this is a further evaluation; None: it is one of the search's

    @property
    def architecture(self) -> Architecture:
        return self.job.architecture


@dataclass(frozen=True)
class Candidate:
    """A job that has ended. One that was stopped by a rule has a curve and no metrics of its proxy, a failed one an
    error and no evaluation."""

    number: int  # its place among the finished, from 0; also the number of its trial in the study
    proposal: Proposal
    state: State
    evaluation: Evaluation | None
    seconds: float  # wall time spent on it, retries included
    error: str | None = None
    attempts: int = 1

    @property
    def fidelity(self) -> Fidelity:
        return self.proposal.job.fidelity

    @property
    def metrics(self) -> Measurements:
        """All that it was measured by, costs included."""
        return {**self.proposal.costs, **(self.evaluation.metrics if self.evaluation else {})}

    def value(self, metric: str) -> float:
        """The value of a metric. Raises ValueError if it has none of that name."""
        found = self.metrics.get(metric)
        if found is None:
            raise ValueError(f"candidate {self.number} has no {metric!r}; it has {', '.join(self.metrics)}")
        return found.value


class Measured(Protocol):
    """A candidate, or a record of one, as far as comparing it goes."""

    @property
    def state(self) -> State: ...

    @property
    def fidelity(self) -> Fidelity: ...

    @property
    def metrics(self) -> Measurements: ...


M = TypeVar("M", bound=Measured)


def comparable(candidates: Sequence[M]) -> list[M]:
    """Those that are done at the most expensive fidelity that any is done at: the ones whose losses may be compared."""
    done = [candidate for candidate in candidates if candidate.state == "done"]
    dearest = max((candidate.fidelity for candidate in done), default=None)
    return [candidate for candidate in done if candidate.fidelity == dearest]
