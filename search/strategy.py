"""What a strategy is: it says which job is next."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

from pydantic import Field, field_validator, model_validator

from nfsearch.proxies import Fidelity, Job
from nfsearch.search.budgets import Budgets
from nfsearch.search.candidate import Answers, Proposal
from nfsearch.search.history import History
from nfsearch.space import Architecture, SearchSpace
from nfsearch.space.notation import parse_layers
from nfsearch.space.operators import LARGEST
from nfsearch.support.registry import Registry
from nfsearch.support.settings import Settings


class KnownDesign(Settings):
    """A design to start from, at a width of its own."""

    width: int = Field(gt=0, le=LARGEST, description="hidden size")
    layers: str = Field(description="the design in the notation")


class SearchSettings(Settings):
    """The fields that the `search:` section of a config has whatever the strategy; its own settings extend it."""

    strategy: str = Field(default="aging", description="how candidates are chosen: the name of a strategy")
    evaluations: int = Field(
        default=200,
        gt=0,
        le=1_000_000,
        description="candidates to evaluate, failed ones and the first population counted",
    )
    population: int = Field(
        default=40,
        gt=1,
        le=1_000_000,
        description="members that can become parents: the last so many that succeeded; a generation is as many",
    )
    seed: int = Field(default=0, ge=0, description="same seed, one worker: same search")
    seeds_known: tuple[str | KnownDesign, ...] = Field(
        default=(),
        description="designs to start from: notation (at the widest width within the limits), or {width, layers}",
    )

    @field_validator("seeds_known")
    @classmethod
    def _parses(cls, designs: tuple[str | KnownDesign, ...]) -> tuple[str | KnownDesign, ...]:
        for design in designs:
            parse_layers(design if isinstance(design, str) else design.layers)
        return designs

    @model_validator(mode="after")
    def _known_designs_are_a_population(self) -> SearchSettings:
        if len(self.seeds_known) > self.population:
            raise ValueError(
                f"seeds_known has {len(self.seeds_known)} designs; population ({self.population}) is the most"
            )
        return self


@dataclass(frozen=True)
class Draft:
    """A design that may become a proposal."""

    architecture: Architecture
    answers: Answers
    origin: str
    parents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Problem:
    """What is searched, within which limits, for what: all that a strategy is told."""

    space: SearchSpace
    budgets: Budgets
    objectives: tuple[str, ...]  # names of metrics, the first one decides where only one can
    fidelity: Fidelity  # at which candidates are evaluated
    seed: int = 0  # with which candidates are evaluated
    known: tuple[Draft, ...] = ()  # designs to begin with

    def job(self, architecture: Architecture) -> Job:
        """The job that evaluates an architecture."""
        return Job(architecture, self.fidelity, self.seed)


class Exhausted(Exception):
    """No design was found that has not been evaluated. The search is over."""


class Strategy(Protocol):
    """Proposes jobs. What it proposes is a function of its settings, the index, the history and what runs now, so that
    a search that was stopped goes on as if it had not been. `DraftStrategy` does what most have in common."""

    Settings: ClassVar[type[SearchSettings]]

    def __init__(self, problem: Problem, settings: SearchSettings) -> None: ...

    def propose(self, index: int, history: History, running: Collection[str] = ()) -> Proposal:
        """The proposal number `index`, given the candidates in the order they finished and the digests of the running
        jobs. Raises `Exhausted` where nothing new is found, and ValueError where no member keeps the limits."""


STRATEGIES: Registry[type[Strategy]] = Registry("nfsearch.strategies", "strategy")
