"""The files of a run's folder that are derived from its result: JSON, CSV, PNG and the HTML report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nfsearch.report.page import render
from nfsearch.report.pictures import png
from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.support.files import write_atomically


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
    """One row per candidate. Latencies are in milliseconds, one column and one error column per workload."""
    workloads, front = result.workloads(), set(result.front)
    rows = [_row(record, workloads, record.number in front) for record in result.candidates]
    return pd.DataFrame(rows, columns=_columns(workloads))


def front_frame(result: RunResult) -> pd.DataFrame:
    """The rows of `candidates_frame` that are on the front, by the first objective."""
    frame = candidates_frame(result).set_index("number", drop=False)
    return frame.loc[result.front].drop(columns=["front", "state", "error"]).reset_index(drop=True)


def front_png(result: RunResult) -> bytes:
    """The front as a picture: the first objective over the second (over parameters, if there is only one)."""
    from matplotlib.figure import Figure  # only now: it takes a second to import

    units = {objective.name: objective.unit for objective in result.objectives}
    names = list(units)
    x_name = names[1] if len(names) > 1 else "parameters"

    shown = {"seconds": ("ms", 1e3), "bytes": ("GB", 1e-9)}

    def value(record: CandidateRecord, name: str) -> float:
        return record.values.get(name, float(record.parameters)) * shown.get(units.get(name, ""), ("", 1.0))[1]

    def label(name: str) -> str:
        unit = shown.get(units.get(name, ""), (units.get(name), 1.0))[0]
        return f"{name} ({unit})" if unit else name

    done = [record for record in result.candidates if record.state == "done"]
    front = sorted((result.candidate(number) for number in result.front), key=lambda r: value(r, x_name))
    figure = Figure(figsize=(7.2, 4.6), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    x, y = ([value(record, name) for record in done] for name in (x_name, names[0]))
    axes.scatter(x, y, s=22, color="0.65", label=f"evaluated ({len(done)})")
    x, y = ([value(record, name) for record in front] for name in (x_name, names[0]))
    if len(names) == 2:
        axes.step(x, y, where="post", color="#0f766e", linewidth=1.2)
    axes.scatter(x, y, s=42, color="#0f766e", zorder=3, label=f"Pareto front ({len(front)})")
    for record, a, b in zip(front, x, y, strict=True):
        axes.annotate(f"{record.number}", (a, b), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set(xlabel=label(x_name), ylabel=label(names[0]))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return png(figure)


def _columns(workloads: list[str]) -> list[str]:
    latencies = [column for name in workloads for column in (f"latency_ms_{name}", f"latency_error_ms_{name}")]
    return [
        *("number", "state", "front", "notation", "width", "parameters", "digest", "loss", "bits_per_byte"),
        *("perplexity", *latencies, "memory_gb", "origin", "generation", "parents", "seconds", "attempts", "error"),
    ]


def _row(record: CandidateRecord, workloads: list[str], front: bool) -> dict[str, object]:
    row: dict[str, object] = record.model_dump(include=set(_columns([])))
    row |= {"front": front, "parents": " ".join(map(str, record.parents))}
    for name in workloads:
        if (latency := record.latency.get(name)) is not None:
            row[f"latency_ms_{name}"] = latency.seconds * 1e3
            row[f"latency_error_ms_{name}"] = latency.error_seconds * 1e3
    if record.memory_bytes is not None:
        row["memory_gb"] = record.memory_bytes / 1e9
    return row
