"""The files of a run's folder that are derived from its result: JSON, CSV, PNG and the HTML report."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from nfsearch.report.front_figure import front_png
from nfsearch.report.page import render
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


_RUNG = "loss_at_"  # how the columns begin of the losses at smaller budgets


def candidates_frame(result: RunResult) -> pd.DataFrame:
    """One row per candidate. A metric has a column in the unit that is shown, such as `tpot_ms`, one for the error bar
    (`tpot_ms_error`) where some candidate has one, and one for the estimate (`tpot_ms_estimated`) where some were
    measured. Those that were confirmed have the mean of the metric that ranks and its error bar
    (`sized_loss_confirmed`, `sized_loss_confirmed_error`) at the first fidelity of `confirmed`, how many
    `seeds` that is of, and whether they are on the `confirmed_front`. `loss_at_TOKENS` is the loss at a rung that some
    training passed."""
    shown, front = result.shown(), set(result.front)
    uncertain = {name for record in result.candidates for name, found in record.metrics.items() if found.error}
    measured = {name for record in result.candidates for name in record.estimates}
    ends = {"": {metric.name for metric in shown}, "_error": uncertain, "_estimated": measured}
    columns = [
        *("number", "state", "front", "notation", "width", "digest"),
        *(metric.column + end for metric in shown for end, having in ends.items() if metric.name in having),
        *_confirmed_columns(result),
        *(f"{_RUNG}{tokens}" for tokens in sorted({tokens for each in result.candidates for tokens, _ in each.rungs})),
        *("origin", "generation", "parents", "tokens", "fidelity", "seed", "job"),
        *("seconds", "attempts", "notes", "error"),
    ]
    rows = [
        {**_row(record, shown, record.number in front), **_confirmed_row(result, record)}
        for record in result.candidates
    ]
    return pd.DataFrame(rows, columns=columns)


def front_frame(result: RunResult) -> pd.DataFrame:
    """The rows of `candidates_frame` that are on the front, by the first objective."""
    frame = candidates_frame(result).set_index("number", drop=False)
    return frame.loc[result.front].drop(columns=["front", "state", "error"]).reset_index(drop=True)


def _confirmed_columns(result: RunResult) -> list[str]:
    if not result.confirmed:
        return []
    column = result.metric(result.confirmed[0].metric).column
    return [f"{column}_confirmed", f"{column}_confirmed_error", "seeds", "confirmed_front"]


def _confirmed_row(result: RunResult, record: CandidateRecord) -> dict[str, object]:
    if not result.confirmed:
        return {}
    confirmed = result.confirmed[0]
    values: list[object] = [None, None, 0, record.number in confirmed.front]
    if finalist := confirmed.finalist(record.number):
        found, scale = finalist.metrics[confirmed.metric], result.metric(confirmed.metric).unit.scale
        values[:3] = found.value * scale, found.error * scale, finalist.seeds
    return dict(zip(_confirmed_columns(result), values, strict=True))


def _row(record: CandidateRecord, shown: list[Metric], front: bool) -> dict[str, object]:
    row: dict[str, object] = record.model_dump(exclude={"fidelity", "metrics", "estimates"})
    row |= {"front": front, "parents": " ".join(map(str, record.parents)), "notes": "; ".join(record.notes)}
    row["fidelity"] = str(record.fidelity)
    row |= {f"{_RUNG}{tokens}": loss for tokens, loss in record.rungs}
    for metric in shown:
        if (found := record.metrics.get(metric.name)) is not None:
            row[metric.column] = found.value * metric.unit.scale
            row[f"{metric.column}_error"] = found.error * metric.unit.scale
        if (guess := record.estimates.get(metric.name)) is not None:
            row[f"{metric.column}_estimated"] = guess.value * metric.unit.scale
    return row
