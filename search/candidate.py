"""One evaluated architecture: what the study keeps of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from nfsearch.proxies import Score
from nfsearch.space import Architecture

Answers = Mapping[str, Any]  # question name -> answer, in the order asked


@dataclass(frozen=True)
class Proposal:
    """An architecture a strategy wants evaluated, and where it came from."""

    index: int  # the place in the sequence of proposals; the trial's number once finished
    architecture: Architecture
    answers: Answers
    origin: str  # "known", "random", "mutation:<kind>", "crossover", "crossover+mutation:<kind>"
    generation: int = 0
    parents: tuple[int, ...] = ()  # candidate numbers
    latency: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # workload -> (seconds, error in seconds)


@dataclass(frozen=True)
class Candidate:
    """A finished evaluation. A failed one has an error instead of a score."""

    number: int
    proposal: Proposal
    state: Literal["done", "failed"]
    score: Score | None
    values: Mapping[str, float]  # objective -> value (smaller is better); empty if failed
    seconds: float  # wall time spent on it, retries included
    error: str | None = None
    attempts: int = 1
