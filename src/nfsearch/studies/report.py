"""What a fidelity study found, for people: tables, a figure, and which budget to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nfsearch.proxies import Fidelity
from nfsearch.report.favourites import FAVOURITES, FILE, Bias, Favourites
from nfsearch.run.records import CONFIG
from nfsearch.studies.advice import METRICS, TARGET, chosen, millions, own, sentences
from nfsearch.studies.agreement import Interval, seed_spread
from nfsearch.studies.config import StudyConfig, load_study
from nfsearch.studies.draw import read_architectures
from nfsearch.studies.figure import figure_png, rates_png
from nfsearch.studies.journal import read
from nfsearch.studies.predictors import Judged, Predictor, Truth, favours, judge, of_operators, predictors, truth_of
from nfsearch.studies.rates import Rates, agreements, rates_of
from nfsearch.studies.results import results
from nfsearch.support.files import naming, whole, write_atomically
from nfsearch.support.terminal import steps

_REGRETS = {  # columns of the table that people read, and those of predictors.csv
    "regret of first": "first",
    "of first, half": "first_of_half",
    "of three": "three",
    "of three, half": "three_of_half",
}


def write_report(folder: Path) -> list[Path]:
    """Writes results.parquet, predictors.csv, operators.csv, favourites.json, report.md and figure.png of what a study
    has so far, and rates.csv where its recipes differ in their rates; returns their paths. Raises ValueError where the
    folder is no study's, or too little of it is done."""
    drawn = read_architectures(folder)
    config = load_study(folder / CONFIG)
    frame = results(drawn, read(folder))
    if frame.empty:
        raise ValueError(f"{folder}: nothing is trained yet")
    reference = config.study.reference
    truth = truth_of(frame, reference.recipe, reference.tokens)
    found = _judged(frame, truth, config)
    noise = seed_spread(truth.losses)
    best, proxy = chosen(found, noise), own(found, config)
    shown = proxy or best
    biased = favours(shown.predictor, truth)
    table, operators = predictors_table(found, noise), operators_table(biased)
    rates = rates_of(frame, config.study)
    said = sentences(best, proxy, noise, config, frame, truth)
    said += ["", *rates.sentences()] if rates else []
    files: dict[str, str | bytes] = {
        "predictors.csv": table.to_csv(index=False),
        "operators.csv": operators.to_csv(index=False),
        FAVOURITES: FILE.dump_json(favourites(found, frame, truth, weights_of(config)), indent=1) + b"\n",
        "report.md": _markdown(frame, truth, said, table, shown.predictor, operators, rates),
        "figure.png": figure_png(found, shown, truth, biased, TARGET),
    }
    if rates:
        files["rates.csv"] = rates.table(truth.about).to_csv(index=False)
        files["rates.png"] = rates_png(rates, truth)
    with naming(folder / "results.parquet"), whole(folder / "results.parquet") as scratch:
        frame.to_parquet(scratch, index=False)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in ("results.parquet", *files)]


def print_report(folder: Path) -> None:
    """Writes the report of a study, and prints where it is and what it advises. Raises ValueError as `write_report`."""
    for path in write_report(folder):
        print(path)
    print((folder / "report.md").read_text(encoding="utf-8").split("\n\n")[1])


def _judged(frame: pd.DataFrame, truth: Truth, config: StudyConfig) -> list[Judged]:
    """Every predictor that can be judged, the best order first."""
    recipes = config.study.recipes
    stable = {name: 1 - recipe.decay for name, recipe in recipes.items() if getattr(recipe, "schedule", "") == "trunk"}
    every = list(predictors(frame[frame["recipe"].isin(recipes)], truth, stable, weights_of(config)))
    found = []
    with steps("comparing orders") as step:
        for done, predictor in enumerate(every, start=1):
            judged = judge(predictor, truth)
            if judged and np.isfinite(judged.spearman.value):
                found.append(judged)
            step(done, len(every))
    return sorted(found, key=lambda each: -each.spearman.value)


def weights_of(config: StudyConfig) -> dict[str, float]:
    """The `size_weight` of each recipe that has one."""
    recipes = config.study.recipes
    return {name: recipe.size_weight for name, recipe in recipes.items() if hasattr(recipe, "size_weight")}


def favourites(
    found: Sequence[Judged], frame: pd.DataFrame, truth: Truth, weights: Mapping[str, float]
) -> list[Favourites]:
    """Which operators each recipe favours at each budget, where enough architectures have an interval: what
    `nfsearch.report.favourites` reads. `weights` are those of `weights_of`."""
    each_loss = [each for each in found if each.predictor.kind in METRICS and np.isfinite(each.spearman.low)]
    return [
        Favourites(
            metric=METRICS[each.predictor.kind],
            fidelity=_fidelity(frame, each.predictor.recipe, each.predictor.tokens),
            size_weight=weights[each.predictor.recipe] if each.predictor.kind == "sized" else None,
            tokens=truth.tokens,
            architectures=each.architectures,
            operators={
                name: Bias(error=round(one.value, 4), low=round(one.low, 4), high=round(one.high, 4))
                for name, one in of_operators(each.predictor, truth).items()
            },
        )
        for each in sorted(
            each_loss, key=lambda each: (each.predictor.recipe, each.predictor.tokens, each.predictor.kind)
        )
    ]


def _fidelity(frame: pd.DataFrame, recipe: str, tokens: int) -> Fidelity:
    row = frame[(frame["recipe"] == recipe) & (frame["tokens"] == tokens)].iloc[0]
    return Fidelity(tokens, int(row["sequence"]), int(row["batch"]), row["settings"], row["data"], int(row["twin"]))


def predictors_table(found: Sequence[Judged], noise: float | None) -> pd.DataFrame:
    """A row for each predictor; `_low` and `_high` are the ends of 95 % intervals, `_sd` is in seed deviations."""
    return pd.DataFrame([_row(each, noise) for each in found])


def _row(judged: Judged, noise: float | None) -> dict[str, object]:
    one = judged.predictor
    row: dict[str, object] = {
        "predictor": one.name,
        "tokens_m": one.tokens / 1e6 if one.tokens else None,
        "seconds": one.seconds,
        "architectures": judged.architectures,
    }
    for name in ("spearman", "kendall", "partial"):
        interval = getattr(judged, name)
        row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    row["spearman_other_seeds"] = judged.across_seeds
    for name, regret in (("first", judged.regret_first), ("three", judged.regret_three)):
        for among, nats in (("", regret.of_all), ("_of_half", regret.of_half)):
            column = f"regret_{name}{among}"
            row |= {column: nats, f"{column}_sd": nats / noise if noise else None}
    return row | {"spread": judged.spread, "seed_spread": judged.seed_spread}


def operators_table(biased: Mapping[str, Interval]) -> pd.DataFrame:
    """Mean rank errors as shares of the list: below 0 the predictor favours it."""
    rows = [{"group": name, "error": each.value, "low": each.low, "high": each.high} for name, each in biased.items()]
    return pd.DataFrame(rows)


def _markdown(
    frame: pd.DataFrame,
    truth: Truth,
    said: Sequence[str],
    table: pd.DataFrame,
    shown: Predictor,
    operators: pd.DataFrame,
    rates: Rates | None,
) -> str:
    order, noise = truth.order, seed_spread(truth.losses)
    about = truth.about.loc[order.index]
    sizes, depths = about["parameters"], about["depth"]
    failed = (frame["state"] != "done").sum()
    lines = [
        "# Does a short training order architectures as a long one does?",
        "",
        *said,
        "",
        f"The long training is {truth.recipe} at {millions(truth.tokens)} tokens: {len(order)} architectures of "
        f"{millions(sizes.min())} to {millions(sizes.max())} parameters (median {millions(sizes.median())}) and "
        f"{_span(depths.min(), depths.max())} layers, losses {order.min():.4f} to {order.max():.4f} nats; "
        f"{_seeds_move(noise)}. {len(frame)} losses on "
        f"{', '.join(sorted(set(frame['device'])))}; {failed} trainings failed.",
        "",
        "![Spearman over cost, ranks, rank errors](figure.png)",
        "",
        "Intervals are 95 % of a bootstrap over architectures. *Partial*: rank correlation given parameters. "
        "*Other seeds*: Spearman between losses of one seed and long ones of another, over the architectures that have "
        "several: where the short training is the beginning of the long one, their common seed alone makes them agree. "
        f"*Regret*: how much worse than the true best the first choice is, and the best of the first three, in "
        f"{'seed deviations' if noise else 'nats'}; *half*: the mean over random halves of the architectures. "
        "*Sized*: the loss - size_weight x ln(non-embedding parameters / 10M). *Curve*: where a power law through the "
        "curve of one training's loss ends; *extrapolated*: one through the losses at several budgets.",
        "",
        _table(_shown(table, "_sd" if noise else "")),
        "",
        f"Mean rank errors of {shown.name} at {millions(shown.tokens)} tokens, as shares of the list; below 0 it is "
        "favoured:",
        "",
        _table(_shown_operators(operators)),
        "",
    ]
    if rates:
        for losses, of in ((rates.losses, "losses"), (rates.sized, "losses corrected for size")):
            tau = f"Kendall's tau between the orders by {of} at two learning rates (all losses: rates.csv, rates.png):"
            lines += [tau, "", _table(agreements(losses)), ""]
    return "\n".join(lines)


def _span(least: int, most: int) -> str:
    return f"{least} to {most}" if most > least else str(least)


def _seeds_move(spread: float | None) -> str:
    """What there is to say of the standard deviation of losses over seeds."""
    if spread is None:
        return "how much a seed moves them is unknown, as each has one"
    return f"a seed moves them by {spread:.4f} nats (standard deviation)"


def _shown(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The columns that people read, as text; `unit` is how those of regrets end."""

    def interval(row: pd.Series, name: str) -> str:
        if pd.isna(row[name]):
            return "–"
        return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"

    def number(value: object, form: str) -> str:
        return "–" if value is None or pd.isna(value) else format(value, form)  # type: ignore[call-overload]

    rows = [
        {
            "predictor": row["predictor"],
            "tokens": millions(1e6 * row["tokens_m"]) if pd.notna(row["tokens_m"]) else "–",
            "seconds": number(row["seconds"] or None, ".1f"),
            "n": row["architectures"],
            "Spearman": interval(row, "spearman"),
            "Kendall": interval(row, "kendall"),
            "partial": interval(row, "partial"),
            "other seeds": number(row["spearman_other_seeds"], ".2f"),
            **{
                title: number(row[f"regret_{column}{unit}"], ".1f" if unit else ".4f")
                for title, column in _REGRETS.items()
            },
            "seed sd (nats)": number(row["seed_spread"], ".4f"),
        }
        for _, row in table.iterrows()
    ]
    return pd.DataFrame(rows)


def _shown_operators(table: pd.DataFrame) -> pd.DataFrame:
    errors = [f"{row['error']:+.1%} ({row['low']:+.1%} to {row['high']:+.1%})" for _, row in table.iterrows()]
    return pd.DataFrame({"": table["group"], "mean rank error": errors})


def _table(frame: pd.DataFrame) -> str:
    """In Markdown."""
    cells = [list(frame.columns), ["---"] * len(frame.columns), *frame.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', '/') for cell in row)} |" for row in cells)
