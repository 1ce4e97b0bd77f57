"""What a search found: the one schema of `result.json`, from which every table, plot and page is derived."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nfsearch.latency_lut.verification import Verification
from nfsearch.latency_lut.workload import MEMORY
from nfsearch.search.candidate import Candidate
from nfsearch.search.pareto import front, hypervolume
from nfsearch.support.files import write_atomically

SCHEMA_VERSION = 1

_UNITS = {"loss": "nats per token", MEMORY: "bytes"}  # of the objectives that have one, latencies apart


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Run(_Part):
    """When, where and how the search ran."""

    status: Literal["complete", "interrupted", "failed-to-finish", "running"] = Field(
        description="failed-to-finish: the search stopped on an error; running: written while it goes on"
    )
    started: datetime = Field(description="with its time zone")
    seconds: float = Field(ge=0, description="wall time, all sessions of a search together but those that were killed")
    device: str = Field(description="what candidates were trained and timed on, in words")
    command: str = Field(description="the command line that was typed")
    versions: dict[str, str] = Field(description="of Python and of each library that decides results")


class ConfigRecord(_Part):
    """The config exactly as given, and what it came to with every default filled in."""

    text: str
    resolved: dict[str, Any]


class SpaceRecord(_Part):
    """The space that was searched."""

    notation: str = Field(description="the layers expression")
    where: dict[str, str] = Field(default={}, description="named expressions it uses")
    count: int | None = Field(
        default=None, description="how many answer sets it has, exactly; null if it was not counted"
    )
    widths: list[int] = Field(description="hidden sizes")
    fit_width: bool = Field(default=False, description="true: the widest that meets the latency budget is taken")
    limits: dict[str, Any] = {}


class Objective(_Part):
    """Something to minimise; the unit is that of the values of candidates."""

    name: str
    unit: str


class Latency(_Part):
    """Estimated time of one workload, with the error bar of the estimate."""

    seconds: float
    error_seconds: float


class CandidateRecord(_Part):
    """One evaluation. What a failed one lacks is null."""

    number: int
    state: Literal["done", "failed"]
    notation: str
    width: int
    layers: list[str] = Field(description="each layer in notation, first to last")
    mixers: list[str] = Field(description="the different token mixers in it, by short name, sorted")
    architecture: dict[str, Any] = Field(description="every field of the architecture; the export reads it")
    parameters: int
    digest: str = Field(description="names the model built: equal digests are equal models")
    loss: float | None = Field(description="nats per token on the validation set")
    bits_per_byte: float | None
    perplexity: float | None
    values: dict[str, float] = Field(description="objective -> value; empty if failed")
    latency: dict[str, Latency] = Field(description="workload -> estimate")
    memory_bytes: float | None = Field(description="peak of the hungriest workload, estimated; null: not known")
    origin: str = Field(description="known, random, crossover or mutation:KIND")
    generation: int
    parents: list[int] = Field(description="candidate numbers")
    seconds: float = Field(description="wall time spent on it, retries included")
    attempts: int
    tokens: int | None = Field(description="training tokens seen")
    seed: int | None = Field(description="of its training run")
    data: str | None = Field(description="what it was trained on")
    fidelity: str | None = Field(description="how it was trained; compare losses only where this is equal")
    curve: list[tuple[int, float | None]] = Field(description="(tokens seen, training loss); null: not finite")
    error: str | None


class Hypervolume(_Part):
    """The hypervolume dominated by everything evaluated, up to a reference point."""

    value: float
    reference: dict[str, float] = Field(description="objective -> value")
    trajectory: list[tuple[int, float]] = Field(description="(evaluations finished, hypervolume), where it changed")


class TableRecord(_Part):
    """The latency table used, where its figures come from, and how well they predict whole models."""

    path: str
    rows: int
    provenance: dict[str, Any]
    verification: Verification | None = Field(default=None, description="null if the table was never checked")


class RunResult(_Part):
    """Everything a search found. `RunResult.model_json_schema()` is the published schema."""

    schema_version: int = SCHEMA_VERSION
    run: Run
    config: ConfigRecord
    space: SpaceRecord
    objectives: list[Objective] = Field(min_length=1)
    candidates: list[CandidateRecord] = Field(description="in the order of their numbers")
    front: list[int] = Field(description="numbers of the non-dominated candidates, by the first objective")
    hypervolume: Hypervolume | None = Field(description="null until a candidate has finished")
    refusals: dict[str, int] = Field(description="reason -> proposals refused before any training")
    table: TableRecord | None = Field(description="null until it has been measured")
    storage: str = Field(description="the Optuna storage that holds the study")

    def candidate(self, number: int) -> CandidateRecord:
        """Raises ValueError if there is no such candidate."""
        for record in self.candidates:
            if record.number == number:
                return record
        raise ValueError(f"no candidate {number}: this run has {len(self.candidates)} candidates")

    def workloads(self) -> list[str]:
        """The workloads that candidates have a latency for, in a stable order."""
        return list(dict.fromkeys(name for record in self.candidates for name in record.latency))

    def save(self, path: str | Path) -> None:
        """Writes the JSON file atomically."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> RunResult:
        """Raises ValueError, naming the file, if it does not follow this schema."""
        try:
            result = cls.model_validate_json(Path(path).read_bytes())
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ValueError(f"{path} is not a result of nfsearch: {where}: {first['msg']}") from None
        if result.schema_version != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema version {result.schema_version}, this nfsearch reads {SCHEMA_VERSION}")
        return result


def build_result(
    candidates: Sequence[Candidate],
    *,
    run: Run,
    config: ConfigRecord,
    space: SpaceRecord,
    objectives: Sequence[str],
    storage: str,
    reference: Mapping[str, float] | None = None,
    refusals: Mapping[str, int] | None = None,
    table: TableRecord | None = None,
) -> RunResult:
    """The result of a study's candidates, finished or not.

    Every objective must be in the `values` of every candidate that is done. `reference` (objective -> value) is the
    corner that hypervolume is measured to; without one it lies a tenth of the range beyond the worst of each objective,
    which is right for one run's progress and not for comparing runs.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.number)
    done = [(count, c) for count, c in enumerate(ordered, start=1) if c.state == "done"]
    points = np.array([[c.values[name] for name in objectives] for _, c in done], dtype=float)
    best = np.flatnonzero(front(points)) if done else np.zeros(0, dtype=int)
    workloads = {name for candidate in ordered for name in candidate.proposal.costs if name != MEMORY}
    return RunResult(
        run=run,
        config=config,
        space=space,
        objectives=[Objective(name=o, unit="seconds" if o in workloads else _UNITS.get(o, "")) for o in objectives],
        candidates=[_record(candidate) for candidate in ordered],
        front=[number for _, number in sorted((points[i, 0], done[i][1].number) for i in best)],
        hypervolume=_hypervolume(points, [count for count, _ in done], objectives, reference),
        refusals=dict(refusals or {}),
        table=table,
        storage=storage,
    )


def _record(candidate: Candidate) -> CandidateRecord:
    proposal, score = candidate.proposal, candidate.score
    architecture = proposal.architecture
    return CandidateRecord(
        number=candidate.number,
        state=candidate.state,
        notation=architecture.notation,
        width=architecture.width,
        layers=[str(layer) for layer in architecture.layers],
        mixers=sorted({layer.op for layer in architecture.layers if layer.spec.kind == "mixer"}),
        architecture=architecture.to_dict(),
        parameters=architecture.parameters,
        digest=architecture.digest,
        loss=score.loss if score else None,
        bits_per_byte=score.bits_per_byte if score else None,
        perplexity=score.perplexity if score else None,
        values=dict(candidate.values),
        latency={
            name: Latency(seconds=seconds, error_seconds=error)
            for name, (seconds, error) in proposal.costs.items()
            if name != MEMORY
        },
        memory_bytes=proposal.costs[MEMORY][0] if MEMORY in proposal.costs else None,
        origin=proposal.origin,
        generation=proposal.generation,
        parents=list(proposal.parents),
        seconds=candidate.seconds,
        attempts=candidate.attempts,
        tokens=score.tokens if score else None,
        seed=score.seed if score else None,
        data=score.data if score else None,
        fidelity=score.fidelity if score else None,
        curve=[(tokens, loss if math.isfinite(loss) else None) for tokens, loss in score.curve] if score else [],
        error=candidate.error,
    )


def _hypervolume(
    points: np.ndarray, finished: list[int], objectives: Sequence[str], reference: Mapping[str, float] | None
) -> Hypervolume | None:
    """`points` [n, objectives] in the order they finished; `finished` [n] counts evaluations, failed ones included."""
    if not len(points):
        return None
    if reference is None:
        low, high = points.min(axis=0), points.max(axis=0)
        span = np.where(high > low, high - low, np.maximum(np.abs(high), 1e-9))
        corner = high + 0.1 * span
    else:
        corner = np.array([reference[name] for name in objectives], dtype=float)
    best = np.empty((0, points.shape[1]))
    trajectory: list[tuple[int, float]] = []
    for count, point in zip(finished, points, strict=True):
        if len(best) and (best <= point).all(axis=1).any():
            continue  # dominated or equal: the volume stays, and is not computed again
        best = np.vstack([best[~(point <= best).all(axis=1)], point])
        trajectory.append((count, float(hypervolume(best, corner))))
    return Hypervolume(
        value=trajectory[-1][1],
        reference=dict(zip(objectives, corner.tolist(), strict=True)),
        trajectory=trajectory,
    )
