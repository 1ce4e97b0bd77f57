"""One evaluated architecture: what the study keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nfsearch.proxies import Score
from nfsearch.search.budgets import Costs
from nfsearch.space import Architecture

Answers = Mapping[str, Any]  # question name -> answer, in the order asked


@dataclass(frozen=True)
class Proposal:
    """An architecture a strategy wants evaluated, and where it came from."""

    index: int  # its place in the sequence of proposals; with several workers not its place among the finished
    architecture: Architecture
    answers: Answers
    origin: str  # "known", "random", "mutation:<kind>" or "crossover"
    generation: int = 0
    parents: tuple[int, ...] = ()  # candidate numbers
    costs: Costs = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)  # reason -> drafts refused before this one was found


@dataclass(frozen=True)
class Candidate:
    """A finished evaluation. A failed one has an error instead of a score."""

    number: int  # its place among the finished, from 0; also the number of its trial in the study
    proposal: Proposal
    state: Literal["done", "failed"]
    score: Score | None
    values: Mapping[str, float]  # objective -> value (smaller is better); empty if failed
    seconds: float  # wall time spent on it, retries included
    error: str | None = None
    attempts: int = 1


def objective_value(objective: str, proposal: Proposal, score: Score) -> float:
    """The value of `loss`, or of an estimated cost: a workload's seconds, or memory.

    Raises ValueError for any other name."""
    if objective == "loss":
        return score.loss
    if objective not in proposal.costs:
        raise ValueError(f"unknown objective {objective!r}; expected one of {', '.join(('loss', *proposal.costs))}")
    return proposal.costs[objective][0]
