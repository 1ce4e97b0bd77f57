"""The files of a run's folder that are derived from its result: JSON, CSV, PNG and the HTML report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nfsearch.report.page import render
from nfsearch.report.pictures import png
from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.support.files import write_atomically
from nfsearch.support.metrics import Metric


def write_outputs(result: RunResult, folder: str | Path) -> list[Path]:
    """Writes result.json, candidates.csv, front.csv, front.png and report.html, each atomically; returns their paths.

    Everything is made before anything is written, so a failure leaves the files of the last time as they were.
    """
    folder = Path(folder)
    files: dict[str, str | bytes] = {
        "result.json": result.model_dump_json(indent=1) + "\n",
        "candidates.csv": candidates_frame(result).to_csv(index=False),
        "front.csv": front_frame(result).to_csv(index=False),
        "front.png": front_png(result),
        "report.html": render(result, folder),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in files]


def candidates_frame(result: RunResult) -> pd.DataFrame:
    """One row per candidate. A metric has a column in the unit that is shown, such as `tpot_ms`, and one for the error
    bar where some candidate has one."""
    shown, front = result.shown(), set(result.front)
    uncertain = {name for record in result.candidates for name, found in record.metrics.items() if found.error}
    columns = [
        *("number", "state", "front", "notation", "width", "digest"),
        *(metric.column + end for metric in shown for end in ("", "_error") if not end or metric.name in uncertain),
        *("origin", "generation", "parents", "tokens", "fidelity", "seed", "job", "continues"),
        *("seconds", "attempts", "notes", "error"),
    ]
    rows = [_row(record, shown, record.number in front) for record in result.candidates]
    return pd.DataFrame(rows, columns=columns)


def front_frame(result: RunResult) -> pd.DataFrame:
    """The rows of `candidates_frame` that are on the front, by the first objective."""
    frame = candidates_frame(result).set_index("number", drop=False)
    return frame.loc[result.front].drop(columns=["front", "state", "error"]).reset_index(drop=True)


def front_png(result: RunResult) -> bytes:
    """The front as a picture: the first objective over the second (over another metric, if there is only one)."""
    from matplotlib.figure import Figure  # only now: it takes a second to import

    names = result.objectives
    first, second = result.metric(names[0]), result.metric(result.across())

    def values(records: list[CandidateRecord], metric: Metric) -> list[float]:
        return [record.metrics[metric.name].value * metric.unit.scale for record in records]

    done = result.in_state("done")
    front = sorted(map(result.candidate, result.front), key=lambda record: record.metrics[second.name].value)
    figure = Figure(figsize=(7.2, 4.6), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    axes.scatter(values(done, second), values(done, first), s=22, color="0.65", label=f"evaluated ({len(done)})")
    x, y = values(front, second), values(front, first)
    if len(names) == 2:
        axes.step(x, y, where="post", color="#0f766e", linewidth=1.2)
    axes.scatter(x, y, s=42, color="#0f766e", zorder=3, label=f"Pareto front ({len(front)})")
    for record, a, b in zip(front, x, y, strict=True):
        axes.annotate(f"{record.number}", (a, b), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel=second.label, ylabel=first.label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return png(figure)


def _row(record: CandidateRecord, shown: list[Metric], front: bool) -> dict[str, object]:
    row: dict[str, object] = record.model_dump(exclude={"fidelity", "metrics"})
    row |= {"front": front, "parents": " ".join(map(str, record.parents)), "notes": "; ".join(record.notes)}
    row["fidelity"] = str(record.fidelity)
    for metric in shown:
        if (found := record.metrics.get(metric.name)) is not None:
            row[metric.column] = found.value * metric.unit.scale
            row[f"{metric.column}_error"] = found.error * metric.unit.scale
    return row
