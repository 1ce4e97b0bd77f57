"""`report.html`: one page that works offline and holds everything a search found, for a person to read."""

from __future__ import annotations

import math
import shlex
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from nfsearch.proxies.settings import LOSS, SIZED_LOSS
from nfsearch.report.favourites import sentence
from nfsearch.report.front_figure import picture_points
from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.report.words import WORDS
from nfsearch.support.metrics import Metric
from nfsearch.support.terminal import duration

# Fill and ink of each operator's cell, told apart in light and dark; FFNs are the quiet ones.
_COLOURS = {
    "A": ("#c8435a", "#fff"),
    "C": ("#b3612a", "#fff"),
    "D": ("#2b7fb8", "#fff"),
    "GDN": ("#14857a", "#fff"),
    "GLA": ("#8657b8", "#fff"),
    "M2": ("#e0a526", "#2b1f00"),
    "F": ("#9aa3ad", "#14181c"),
}
_MORE_COLOURS = (("#b1567b", "#fff"), ("#6f8f1f", "#fff"), ("#4f6d9c", "#fff"))


def render(result: RunResult, folder: str | Path = ".") -> str:
    """The whole page; `folder` is the run's, for the commands the page tells the reader to type."""
    records = {record.number: record for record in result.candidates}
    front = [records[number] for number in result.front]
    return (
        _environment()
        .get_template("report.html")
        .render(
            result=result,
            title=Path(folder).resolve().name,
            folder=shlex.quote(str(folder)),
            verify=shlex.join(_verify_command(result, Path(folder))),
            plotly=get_plotlyjs(),
            data=plot_data(result),
            records=records,
            front=front,
            on_front=set(result.front),
            done=result.in_state("done"),
            stopped=result.in_state("stopped"),
            failed=result.in_state("failed"),
            first=result.metric(result.objectives[0]),
            objectives=[*map(result.metric, result.objectives)],
            shown=result.shown(),
            told=_told(result),
            confirmed=result.confirmed[0] if result.confirmed else None,
            timed=any(record.estimates for record in result.candidates),
            words=WORDS,
            notes=result.notes(),
            favourites=sentence(result.favourites),
            narrow=max((record.fidelity.twin for record in result.candidates), default=1),
            colours=operator_colours(result.candidates),
            chains={record.number: ancestry(record, records) for record in front},
            mutations=mutation_table(result),
        )
    )


def _told(result: RunResult) -> list[Metric]:
    """The metrics that the tables of the front have room for: the objectives, what is limited, the parameters, and what
    a sized loss is made of."""
    sized = [LOSS.name] if SIZED_LOSS.name in result.objectives else []
    names = dict.fromkeys((*result.objectives, *sized, *result.limits, "parameters"))
    return [metric for name in names for metric in result.shown() if metric.name == name]


@cache
def _environment() -> Environment:
    """What templates are read with; it keeps them compiled."""
    environment = Environment(
        loader=PackageLoader("nfsearch.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    environment.filters.update(digits=digits, duration=duration, size=size)
    environment.filters["pretty"] = lambda fields: yaml.safe_dump(
        fields, sort_keys=False, allow_unicode=True, width=100
    )
    environment.filters["finalist"] = lambda number, confirmed: confirmed.finalist(number)
    environment.filters["lowest"] = lambda records, name: min(records, key=lambda record: record.metrics[name].value)
    return environment


def _verify_command(result: RunResult, folder: Path) -> list[str]:
    table = folder / result.table.path if result.table else folder
    return ["nfsearch", "lut", "verify", str(table), "--config", str(folder / "config.yaml")]


# --- what the plots are drawn from -----------------------------------------------------------------------------------


def plot_data(result: RunResult) -> dict[str, Any]:
    """What the page's script draws: numbers only where it plots them, in the units it shows (milliseconds)."""
    axes = {metric.name: metric for metric in result.shown()}
    front, names = set(result.front), result.objectives
    places = {record.number: place for place, record in enumerate(result.candidates, start=1)}
    trajectory = result.hypervolume.trajectory if result.hypervolume else []
    scale = math.prod(axes[name].unit.scale for name in names)
    return {
        "axes": [{"key": name, "label": metric.label} for name, metric in axes.items()],
        "x": result.across(),
        "y": names[0],
        "objectives": names,
        "points": [
            {
                "number": record.number,
                "place": places[record.number],
                "notation": record.notation,
                "width": record.width,
                "origin": record.origin.split(":")[0],
                "made": record.origin,
                "generation": record.generation,
                "mixers": " + ".join(record.mixers) or "none",
                "parents": record.parents,
                "front": record.number in front,
                "values": {name: found.value * axes[name].unit.scale for name, found in record.metrics.items()},
                "errors": {
                    name: found.error * axes[name].unit.scale for name, found in record.metrics.items() if found.error
                },
                "estimates": {name: found.value * axes[name].unit.scale for name, found in record.estimates.items()},
            }
            for record in result.in_state("done")
        ],
        "limits": {name: most * result.metric(name).unit.scale for name, most in result.limits.items()},
        "best": _best_so_far(result, axes[names[0]].unit.scale),
        "hypervolume": [(count, volume * scale) for count, volume in trajectory],
        "volume": f"hypervolume ({' × '.join(axes[name].unit.shown or name for name in names)})",
        "evaluations": len(result.candidates),
        "curves": [
            {
                "number": record.number,
                "tokens": [t for t, _ in record.curve],
                "loss": [loss for _, loss in record.curve],
            }
            for record in map(result.candidate, result.front)
        ],
        "check": _check(result),
        "confirmed": [asdict(point) for point in picture_points(result)] if result.confirmed else [],
    }


def _best_so_far(result: RunResult, scale: float) -> list[tuple[int, float]]:
    """(evaluations finished, lowest first objective so far of those that the front is chosen from), where it fell."""
    able = {record.number for record in result.admitted()}
    best: list[tuple[int, float]] = []
    for count, record in enumerate(result.candidates, start=1):
        if record.number in able:
            value = record.metrics[result.objectives[0]].value * scale
            if not best or value < best[-1][1]:
                best.append((count, value))
    return best


def _check(result: RunResult) -> list[dict[str, Any]]:
    verification = result.table.verification if result.table else None
    return [check.model_dump() for check in verification.checks] if verification else []


# --- what the tables show --------------------------------------------------------------------------------------------


def operator_colours(records: Iterable[CandidateRecord]) -> dict[str, tuple[str, str]]:
    """Operator -> (fill, ink), for those that occur."""
    used = {layer.split("[")[0] for record in records for layer in record.layers}
    more = cycle(_MORE_COLOURS)
    return {name: _COLOURS.get(name) or next(more) for name in sorted(used, key=lambda name: (name == "F", name))}


def ancestry(record: CandidateRecord, records: Mapping[int, CandidateRecord]) -> list[CandidateRecord]:
    """From the first ancestor down to the record, along first parents."""
    chain = [record]
    while chain[-1].parents and chain[-1].parents[0] in records and len(chain) <= len(records):
        chain.append(records[chain[-1].parents[0]])
    return chain[::-1]


def mutation_table(result: RunResult) -> list[dict[str, Any]]:
    """Per way a candidate came about: how many, how many failed, beat their parent or reached the front."""
    objective, records = result.objectives[0], {record.number: record for record in result.candidates}
    kinds: dict[str, list[CandidateRecord]] = {}
    for record in result.candidates:
        kinds.setdefault(record.origin, []).append(record)
    table = []
    for kind, made in sorted(kinds.items(), key=lambda item: -len(item[1])):
        pairs = [
            (record, records[record.parents[0]]) for record in made if record.parents and record.parents[0] in records
        ]
        gains = [
            child.metrics[objective].value - parent.metrics[objective].value
            for child, parent in pairs
            if child.state == parent.state == "done"
        ]
        table.append(
            {
                "kind": kind,
                "made": len(made),
                "failed": sum(record.state == "failed" for record in made),
                "compared": len(gains),
                "better": sum(gain < 0 for gain in gains),
                "median": statistics.median(gains) if gains else None,
                "front": sum(record.number in result.front for record in made),
            }
        )
    return table


# --- numbers as people read them -------------------------------------------------------------------------------------


def digits(value: float | None, places: int = 3) -> str:
    return "–" if value is None else f"{value:.{places}f}"


def size(count: int | None) -> str:
    """A count of a space: exact while it can be read, else a power of ten."""
    if count is None:
        return "not counted"
    return f"{count:,}" if count < 10**9 else f"{count:.2e}".replace("e+", " × 10^")
