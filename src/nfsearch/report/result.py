"""What a search found: the one schema of `result.json`, from which every table, plot and page is derived.

Schema 3 says more than schema 2 did: what was estimated of a metric that was then measured on the whole model
(`candidates[].estimates`), the candidates confirmed over other seeds (`confirmed`), and whether the latency table can
be trusted (`table.trusted`, `table.complaints`, `table.timed`). The front is chosen by measured times where its members
were timed whole, and every error bar of an estimated time holds what the table's check says of its bias.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, ValidationError, model_validator

from nfsearch.latency_lut.agreement import Agreement, Doubt, Trust
from nfsearch.latency_lut.verification import Check, Verification
from nfsearch.proxies import Fidelity, TokenSource
from nfsearch.report.confirmation import Confirmed, Part, best, confirmed_of
from nfsearch.report.favourites import Favourites, studied
from nfsearch.search.budgets import Limits
from nfsearch.search.candidate import Candidate, State
from nfsearch.search.pareto import hypervolume, members, ranked, reference_point
from nfsearch.support.files import write_atomically
from nfsearch.support.metrics import SECONDS, Measurement, Measurements, Metric

SCHEMA_VERSION = 4
MISFIT = "it did not fit into memory when it was timed as a whole model"

# Digest of an architecture -> workload -> the whole model measured; None: it did not fit into memory.
Timings = Mapping[str, Mapping[str, Check | None]]


class Run(Part):
    """When, where and how the search ran."""

    status: Literal["complete", "interrupted", "failed-to-finish", "running"] = Field(
        description="failed-to-finish: the search stopped on an error; running: written while it goes on"
    )
    started: datetime = Field(description="with its time zone")
    seconds: float = Field(ge=0, description="wall time, all sessions of a search together but those that were killed")
    device: str = Field(description="what candidates were trained and timed on, in words")
    command: str = Field(description="the command line that was typed")
    versions: dict[str, str] = Field(description="of Python and of each library that decides results")


class ConfigRecord(Part):
    """The config exactly as given, and what it came to with every default filled in."""

    text: str
    resolved: dict[str, Any]


class SpaceRecord(Part):
    """The space that was searched."""

    notation: str = Field(description="the layers expression")
    where: dict[str, str] = Field(default={}, description="named expressions it uses")
    count: int | None = Field(
        default=None,
        description="how many combinations of choices it has, exactly; null for a number of more than 300 digits",
    )
    widths: list[int] = Field(description="hidden sizes")
    fit_width: bool = Field(default=False, description="true: the widest that meets the latency budget is taken")
    limits: dict[str, Any] = Field(default={})
    serves: str | None = Field(default=None, description="the exporter that can express every member; null: any")


class CandidateRecord(Part):
    """One job that has ended. What a failed one, or one that a rule stopped, lacks is null or absent."""

    number: int
    state: State = Field(description="done; stopped: by a rule, before its end; failed: with an error")
    notation: str
    width: int
    layers: list[str] = Field(description="each layer in notation, first to last")
    mixers: list[str] = Field(description="the different token mixers in it, by short name, sorted")
    architecture: dict[str, Any] = Field(description="every field of the architecture; the export reads it")
    digest: str = Field(description="names the model built: equal digests are equal models")
    job: str = Field(description="names the evaluation: equal digests are the same model, fidelity and seed")
    fidelity: Fidelity = Field(description="what it was measured with; losses are compared where this is equal")
    seed: int = Field(description="of the evaluation")
    metrics: dict[str, Measurement] = Field(
        description="by name: the value in the metric's unit, and its error bar. Of an estimated time about a 95 % "
        "interval: the noise of the table's rows, and bias and spread of the table's check. Of a measured one, the "
        "fastest of several measurements, half its interquartile range, or the gap to another where that is larger"
    )
    estimates: dict[str, Measurement] = Field(
        default={}, description="what was estimated of the metrics that were measured on the whole model"
    )
    origin: str = Field(description="known, random, crossover, mutation:KIND, or what another strategy says")
    generation: int
    parents: list[int] = Field(description="candidate numbers")
    seconds: float = Field(description="wall time spent on it, retries included")
    attempts: int
    tokens: int | None = Field(description="training tokens seen")
    curve: list[tuple[int, float | None]] = Field(description="(tokens seen, training loss); null: not finite")
    rungs: list[tuple[int, float]] = Field(
        default=[], description="(tokens, the validation loss) at smaller budgets that the training passed"
    )
    notes: list[str] = Field(default=[], description="what the worker had to say: a kernel that was refused, ...")
    error: str | None

    def value(self, metric: str) -> float | None:
        """The value of a metric; None where it has none."""
        found = self.metrics.get(metric)
        return found.value if found else None


class Hypervolume(Part):
    """The hypervolume dominated by everything evaluated, up to a reference point."""

    value: float
    reference: dict[str, float] = Field(description="objective -> value")
    trajectory: list[tuple[int, float]] = Field(description="(evaluations finished, hypervolume), where it changed")


class TableRecord(Part):
    """The latency table used, where its figures come from, and how well they predict whole models."""

    path: str
    rows: int
    provenance: dict[str, Any]
    verification: Verification | None = Field(default=None, description="null if the table was never checked")
    trusted: bool | None = Field(default=None, description="what the check says; null if the table was never checked")
    trust: Trust = Field(default=Trust(), description="what a check has to come to")
    complaints: list[str] = Field(default=[], description="what the check found bad, in words")
    timed: dict[str, Agreement] = Field(
        default={}, description="by workload: the candidates timed as whole models against their estimates"
    )


class RunResult(Part):
    """Everything a search found. `RunResult.model_json_schema()` is the published schema."""

    schema_version: int = SCHEMA_VERSION
    run: Run
    config: ConfigRecord
    space: SpaceRecord
    sources: list[TokenSource] = Field(default=[], description="where training tokens come from, the largest first")
    metrics: list[Metric] = Field(min_length=1, description="what candidates are measured by; smaller is better")
    objectives: list[str] = Field(min_length=1, description="the metrics that are minimised; the first one decides")
    limits: dict[str, float] = Field(default={}, description="metric -> the most of it, in its unit")
    candidates: list[CandidateRecord] = Field(description="in the order of their numbers")
    front: list[int] = Field(
        description="numbers of the non-dominated candidates, by the first objective; of those timed as whole models, "
        "where the front was"
    )
    confirmed: list[Confirmed] = Field(
        default=[],
        description="candidates evaluated again with other seeds, the most expensive fidelity first; last "
        "those that cannot tell who is better",
    )
    favourites: Favourites | None = Field(
        default=None,
        description="which operators the proxy places too high or too low, as the study that comes with nfsearch "
        "found; null where that was not of a proxy with these settings",
    )
    hypervolume: Hypervolume | None = Field(
        description="of the search, with estimated times; null until a candidate has finished"
    )
    refusals: dict[str, int] = Field(description="reason -> proposals refused before any training")
    table: TableRecord | None = Field(description="null until it has been measured")
    storage: str = Field(description="the Optuna storage that holds the study")

    @model_validator(mode="after")
    def _fits_together(self) -> RunResult:
        _require_known(self.candidates, self.metrics)
        return self

    def candidate(self, number: int) -> CandidateRecord:
        """Raises ValueError if there is no such candidate."""
        for record in self.candidates:
            if record.number == number:
                return record
        for finalist in (each for confirmed in self.confirmed for each in confirmed.finalists):
            if number in {run.trial for run in finalist.runs}:
                raise ValueError(f"{number} is no candidate, but a further training of candidate {finalist.number}")
        raise ValueError(f"no candidate {number}: this run has {len(self.candidates)} candidates")

    def metric(self, name: str) -> Metric:
        """Raises ValueError if candidates are not measured by it."""
        for metric in self.metrics:
            if metric.name == name:
                return metric
        raise ValueError(f"no metric {name!r}: this run has {', '.join(metric.name for metric in self.metrics)}")

    def shown(self) -> list[Metric]:
        """The metrics that a table has a column for: the objectives, then those that some candidate has a value of."""
        found = {name for record in self.candidates for name in record.metrics}
        others = [metric for metric in self.metrics if metric.name in found and metric.name not in self.objectives]
        return [*map(self.metric, self.objectives), *others]

    def timed(self) -> list[str]:
        """The metrics that are times, the objectives among them first."""
        return [metric.name for metric in self.shown() if metric.unit == SECONDS]

    def across(self) -> str:
        """The metric that plots draw the first objective over: the second, or another where there is but one."""
        others = [*self.objectives[1:], "parameters", *(metric.name for metric in self.shown())]
        return next((name for name in others if name != self.objectives[0]), self.objectives[0])

    def in_state(self, state: State) -> list[CandidateRecord]:
        """The candidates that ended so, in the order of their numbers."""
        return [record for record in self.candidates if record.state == state]

    def admitted(self) -> list[CandidateRecord]:
        """The candidates done within the limits, at the most expensive fidelity that any is done at."""
        return ranked(self.candidates, Limits(self.limits, {metric.name: metric for metric in self.metrics}))

    def contenders(self) -> list[CandidateRecord]:
        """The candidates that the front is chosen from: those admitted, and timed as whole models where the front
        was."""
        return _contenders(self.admitted())

    @property
    def best_known(self) -> list[int]:
        """The front that says most: the first that was confirmed, else the search's."""
        return self.confirmed[0].front if self.confirmed else self.front

    def notes(self) -> dict[str, list[int]]:
        """What workers had to say -> the numbers of the candidates it was said of."""
        found: dict[str, list[int]] = {}
        for record in self.candidates:
            for note in record.notes:
                found.setdefault(note, []).append(record.number)
        return found

    def save(self, path: str | Path) -> None:
        """Writes the JSON file atomically."""
        write_atomically(path, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> RunResult:
        """Raises ValueError, naming the file, if it does not follow this schema, or follows one of another version."""
        content = Path(path).read_bytes()
        version = None
        with suppress(json.JSONDecodeError, UnicodeDecodeError, AttributeError):  # validation says what is wrong
            version = json.loads(content).get("schema_version")
        if version not in (None, SCHEMA_VERSION):
            raise ValueError(f"{path} has schema version {version}, this nfsearch reads {SCHEMA_VERSION}")
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ValueError(f"{path} is not a result of nfsearch: {where}: {first['msg']}") from None


def build_result(
    candidates: Sequence[Candidate],
    *,
    run: Run,
    config: ConfigRecord,
    space: SpaceRecord,
    metrics: Sequence[Metric],
    objectives: Sequence[str],
    limits: Limits,
    population: int,
    storage: str,
    sources: Sequence[TokenSource] = (),
    table: TableRecord | None = None,
    timings: Timings | None = None,
    confirmations: Sequence[Candidate] = (),
) -> RunResult:
    """The result of a study's candidates, finished or not. `population` is how many candidates, the first to finish,
    set the corner that hypervolume is measured to: see `reference_point`.

    `timings` count once the whole front, as it was estimated, is among them: no measured time is compared with an
    estimated one."""
    ordered = sorted(candidates, key=lambda candidate: candidate.number)
    timings = timings or {}
    if not all(each.proposal.architecture.digest in timings for each in members(ordered, objectives, limits)):
        timings = {}
    check = table.verification if table else None
    doubts = {metric.name: _doubt(check, metric.name) for metric in metrics if metric.unit == SECONDS}
    records = [_record(each, doubts, timings.get(each.proposal.architecture.digest, {})) for each in ordered]
    by_number = {record.number: record.metrics for record in records}
    _require_known(records, metrics)
    able = _contenders(ranked(records, limits))
    refusals: Counter[str] = Counter()
    for candidate in ordered:
        refusals.update(candidate.proposal.refused)
    return RunResult(
        run=run,
        config=config,
        space=space,
        sources=list(sources),
        metrics=list(metrics),
        objectives=list(objectives),
        limits=dict(limits.most),
        candidates=records,
        front=best({record.number: record.metrics for record in able}, objectives),
        confirmed=confirmed_of(confirmations, by_number, objectives, limits),
        favourites=_studied(objectives, records, config),
        hypervolume=_hypervolume(ordered, objectives, limits, population),
        refusals=dict(refusals),
        table=table,
        storage=storage,
    )


def _studied(objectives: Sequence[str], records: Sequence[CandidateRecord], config: ConfigRecord) -> Favourites | None:
    if not records:
        return None
    weight = config.resolved.get("proxy", {}).get("size_weight")
    return studied(objectives, max(record.fidelity for record in records), weight)


def _require_known(records: Sequence[CandidateRecord], metrics: Sequence[Metric]) -> None:
    known = {metric.name for metric in metrics}
    for record in records:
        if unknown := record.metrics.keys() - known:
            raise ValueError(
                f"candidate {record.number} has a value of {', '.join(sorted(unknown))}, which this run does not "
                "measure: what was stored is damaged"
            )


def _contenders(able: list[CandidateRecord]) -> list[CandidateRecord]:
    return [record for record in able if record.estimates] or able


def _doubt(check: Verification | None, workload: str) -> Doubt:
    return check.doubt(workload) if check and check.checks else Doubt(0.0, 0.0)


def _times(
    costs: Measurements, doubts: Mapping[str, Doubt], timed: Mapping[str, Check | None]
) -> tuple[dict[str, Measurement], dict[str, Measurement]]:
    """What workloads take, with error bars, and what was estimated of those that were measured."""
    estimated = {
        name: Measurement(cost.value, doubts[name].bar(cost.value, cost.error))
        for name, cost in costs.items()
        if name in doubts
    }
    measured = {
        name: Measurement(found.measured_ms / 1e3, found.spread_ms / 2e3)
        for name, found in timed.items()
        if found is not None
    }
    return {**estimated, **measured}, {name: estimated[name] for name in measured}


def _record(candidate: Candidate, doubts: Mapping[str, Doubt], timed: Mapping[str, Check | None]) -> CandidateRecord:
    misfit = None in timed.values()
    times, estimates = _times(candidate.proposal.costs, doubts, {} if misfit else timed)
    proposal, found = candidate.proposal, candidate.evaluation
    job, architecture = proposal.job, proposal.architecture
    curve = found.curve if found else ()
    return CandidateRecord(
        number=candidate.number,
        state=candidate.state,
        notation=architecture.notation,
        width=architecture.width,
        layers=[str(layer) for layer in architecture.layers],
        mixers=sorted({layer.op for layer in architecture.layers if layer.spec.kind == "mixer"}),
        architecture=architecture.to_dict(),
        digest=architecture.digest,
        job=job.digest,
        fidelity=job.fidelity,
        seed=job.seed,
        # JSON has no infinity: the error of a proxy that saw too little to tell is one that is not known.
        metrics={
            name: each if math.isfinite(each.error) else Measurement(each.value)
            for name, each in {**candidate.metrics, **times}.items()
        },
        estimates=estimates,
        origin=proposal.origin,
        generation=proposal.generation,
        parents=list(proposal.parents),
        seconds=candidate.seconds,
        attempts=candidate.attempts,
        tokens=found.tokens if found else None,
        curve=[(tokens, loss if math.isfinite(loss) else None) for tokens, loss in curve],
        rungs=list(found.rungs) if found else [],
        notes=[*([MISFIT] if misfit else ()), *(found.notes if found else ())],
        error=candidate.error,
    )


def _hypervolume(
    candidates: Sequence[Candidate], objectives: Sequence[str], limits: Limits, population: int
) -> Hypervolume | None:
    """Over the candidates in the order of their numbers; evaluations are counted with those that failed."""
    able = {candidate.number for candidate in ranked(candidates, limits)}
    if not able:
        return None
    finished = [count for count, candidate in enumerate(candidates, start=1) if candidate.number in able]
    points = np.array([[candidates[count - 1].value(name) for name in objectives] for count in finished])
    corner = reference_point(points, [limits.most.get(name) for name in objectives], population)
    best = np.empty((0, points.shape[1]))
    trajectory: list[tuple[int, float]] = []
    for count, point in zip(finished, points, strict=True):
        if len(best) and (best <= point).all(axis=1).any():
            continue  # dominated or equal: the volume stays, and is not computed again
        best = np.vstack([best[~(point <= best).all(axis=1)], point])
        trajectory.append((count, hypervolume(best, corner)))
    return Hypervolume(
        value=trajectory[-1][1],
        reference=dict(zip(objectives, corner.tolist(), strict=True)),
        trajectory=trajectory,
    )
