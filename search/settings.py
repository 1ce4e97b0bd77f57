"""The `search:` and `workers:` sections of a config."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from nfsearch.space.notation import parse_layers


class KnownDesign(BaseModel):
    """A design to start from, at a width of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    width: int = Field(gt=0, description="hidden size")
    layers: str = Field(description="the design in the notation")


class SearchSettings(BaseModel):
    """How the space is searched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Literal["aging", "random"] = Field(
        "aging", description="aging evolution, or uniform answers as a baseline"
    )
    evaluations: int = Field(
        200, gt=0, description="candidates to evaluate, failed ones and the first population counted"
    )
    population: int = Field(40, gt=1, description="members that can become parents: the last so many that succeeded")
    tournament: int = Field(
        8, gt=0, description="members drawn at random, of which the one with the lowest loss is parent"
    )
    crossover: float = Field(
        0.2, ge=0, le=1, description="share of children of two parents; the others are mutations of one"
    )
    seed: int = Field(0, ge=0, description="same seed, one worker: same search")
    seeds_known: tuple[str | KnownDesign, ...] = Field(
        (), description="designs to start from: notation (at the widest width within the limits), or {width, layers}"
    )

    @field_validator("seeds_known")
    @classmethod
    def _parses(cls, designs: tuple[str | KnownDesign, ...]) -> tuple[str | KnownDesign, ...]:
        for design in designs:
            parse_layers(design if isinstance(design, str) else design.layers)
        return designs

    @model_validator(mode="after")
    def _fits_together(self) -> SearchSettings:
        if len(self.seeds_known) > self.population:
            raise ValueError(
                f"seeds_known has {len(self.seeds_known)} designs; population ({self.population}) is the most"
            )
        if self.strategy == "aging":
            if self.tournament > self.population:
                raise ValueError(f"tournament ({self.tournament}) is larger than population ({self.population})")
            if self.population > self.evaluations:
                raise ValueError(
                    f"population ({self.population}) is larger than evaluations ({self.evaluations}): "
                    "the search would end before its first child"
                )
        return self


class WorkerSettings(BaseModel):
    """The processes that train candidates."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int | Literal["auto"] = Field(
        "auto", description="worker processes; auto = as many as the machine has room for"
    )
    gpus: float = Field(1, ge=0, description="GPUs of each worker where training runs on CUDA; 0.5 lets two share one")
    cpus: int = Field(1, gt=0, description="CPU cores, and threads, of each worker")
    address: str | None = Field(None, description="a running Ray cluster; null starts Ray on this machine")
    timeout_s: float = Field(600, gt=0, description="longest time for one candidate, in seconds")
    retries: int = Field(1, ge=0, description="fresh attempts after a worker died or ran out of time")
    max_memory_gb: float | None = Field(
        None, gt=0, description="a worker above this much memory is replaced; null = its share of the machine's"
    )

    @field_validator("count")
    @classmethod
    def _positive(cls, count: int | str) -> int | str:
        if isinstance(count, int) and count < 1:
            raise ValueError(f"expected auto or a number of at least 1, found {count}")
        return count

    @field_validator("gpus")
    @classmethod
    def _whole_above_one(cls, gpus: float) -> float:
        if gpus > 1 and gpus != int(gpus):
            raise ValueError(f"expected a whole number or a part of one GPU, found {gpus}")
        return gpus
