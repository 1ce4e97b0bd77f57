"""What a fidelity study found, for people: tables, a figure, and which budget to use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nfsearch.proxies import Fidelity
from nfsearch.proxies.settings import LOSS, SIZED_LOSS
from nfsearch.report.favourites import FAVOURED, FAVOURITES, FILE, Bias, Favourites
from nfsearch.run.records import CONFIG
from nfsearch.studies.agreement import Interval, seed_spread
from nfsearch.studies.config import StudyConfig, load_study
from nfsearch.studies.draw import read_architectures
from nfsearch.studies.figure import figure_png, rates_png
from nfsearch.studies.journal import read
from nfsearch.studies.predictors import Judged, Truth, by_seed, favours, judge, of_operators, predictors, truth_of
from nfsearch.studies.rates import Rates, agreements, rates_of
from nfsearch.studies.results import results
from nfsearch.studies.size import wanted_weight
from nfsearch.support.files import naming, whole, write_atomically
from nfsearch.support.terminal import duration, steps

METRICS = {"loss": LOSS.name, "sized": SIZED_LOSS.name}  # what kinds of predictors are called in a run
TARGET = 0.85  # the rank correlation from which an order is believed
CLOSE = 2.0  # seed deviations from the true best: as far as a first choice may end that a seed could explain
FEW = 10  # architectures; of fewer no order is believed
_MOST = 0.9  # of the architectures that any predictor scored


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
    best = chosen(found, noise)
    biased = favours(best.predictor, truth)
    table, operators = predictors_table(found, noise), operators_table(biased)
    rates = rates_of(frame, config.study)
    sized = _said_of_size(best, config, frame, truth)
    said = [*sentences(best, biased, noise), *sized, *(rates.sentences() if rates else ())]
    files: dict[str, str | bytes] = {
        "predictors.csv": table.to_csv(index=False),
        "operators.csv": operators.to_csv(index=False),
        FAVOURITES: FILE.dump_json(favourites(found, frame, truth, weights_of(config)), indent=1) + b"\n",
        "report.md": _markdown(frame, truth, said, table, operators, rates),
        "figure.png": figure_png(found, best, truth, biased, TARGET),
    }
    if rates:
        files["rates.csv"] = rates.table(truth.about).to_csv(index=False)
        files["rates.png"] = rates_png(rates, truth)
    with naming(folder / "results.parquet"), whole(folder / "results.parquet") as scratch:
        frame.to_parquet(scratch, index=False)
    for name, content in files.items():
        write_atomically(folder / name, content)
    return [folder / name for name in ("results.parquet", *files)]


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


def chosen(found: Sequence[Judged], noise: float | None) -> Judged:
    """The cheapest of what trains that orders well and whose first choice is close to the true best, a loss before what
    is made of losses; where none is, the cheapest that orders well; else the one that comes nearest to it. What scored
    much fewer architectures than others does not count. Raises ValueError where nothing that trains was judged."""
    trained = [each for each in found if each.predictor.kind != "free"]
    if not trained:
        raise ValueError("no loss but the reference's is known of enough architectures: nothing can be compared yet")
    most = max(each.architectures for each in trained)
    able = [each for each in trained if each.architectures >= _MOST * most]
    good = [each for each in able if each.spearman.value >= TARGET]
    close = [each for each in good if _close(each, noise)]
    return min(close or good, key=lambda each: (each.predictor.seconds, each.predictor.kind != "loss"), default=able[0])


def _close(judged: Judged, noise: float | None) -> bool:
    """Whether its first choice is as good as the true best, as far as seeds tell."""
    return noise is not None and judged.regret_first <= CLOSE * noise


def sentences(best: Judged, biased: Mapping[str, Interval], noise: float | None) -> list[str]:
    """Which budget to use, and what to beware of."""
    one = best.predictor
    what = f"{one.name} at {millions(one.tokens)} tokens ({duration(one.seconds)} a candidate, the median)"
    agrees = f"Spearman {best.spearman} with the long order over {best.architectures} architectures"
    if best.spearman.value >= TARGET:
        too = f" with a first choice within {CLOSE:g} seed deviations of the true best" if _close(best, noise) else ""
        found = [f"Use this budget: {what}. {agrees}; it is the cheapest that reaches {TARGET}{too}."]
    else:
        found = [f"No budget reaches a Spearman of {TARGET}. The nearest is {what}: {agrees}."]
    found.append(
        f"Its first choice is {_regret(best.regret_first, noise)} worse than the true best, "
        f"the best of its first three {_regret(best.regret_three, noise)}."
    )
    if best.architectures < FEW:
        found.append(f"Only {best.architectures} architectures were compared: that says little, whatever the interval.")
    elif best.spearman.low < TARGET <= best.spearman.value:
        found.append(f"The interval reaches below {TARGET}: that it gets there may be luck.")
    for name, error in biased.items():
        if abs(error.value) > FAVOURED:
            side = "too high" if error.value < 0 else "too low"
            sure = "" if error.low > 0 or error.high < 0 else ", though the interval holds 0"
            found.append(f"Beware: it places {name} {abs(error.value):.0%} of the list {side}{sure}.")
    return found


def _said_of_size(best: Judged, config: StudyConfig, frame: pd.DataFrame, truth: Truth) -> list[str]:
    """By how much the loss was corrected for size, where it was, and which correction these architectures want."""
    one = best.predictor
    if one.kind != "sized":
        return []
    weight, losses = config.study.recipes[one.recipe].size_weight, by_seed(frame, one.recipe, one.tokens).iloc[:, 0]
    wanted = wanted_weight(losses, truth.about["non_embedding_parameters"], truth.order)
    fitted = "" if wanted is None else f"; fitted to these architectures it is {wanted:.2f}"
    return [f"Its size_weight is {weight:g}{fitted}."]


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


def _regret(nats: float, noise: float | None) -> str:
    return f"{nats:.4f} nats" + (f" ({nats / noise:.1f} seed deviations)" if noise else "")


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
    return row | {
        "spearman_other_seeds": judged.across_seeds,
        "regret_first": judged.regret_first,
        "regret_three": judged.regret_three,
        "regret_first_sd": judged.regret_first / noise if noise else None,
        "regret_three_sd": judged.regret_three / noise if noise else None,
        "spread": judged.spread,
        "seed_spread": judged.seed_spread,
    }


def operators_table(biased: Mapping[str, Interval]) -> pd.DataFrame:
    """Mean rank errors as shares of the list: below 0 the predictor favours it."""
    rows = [{"group": name, "error": each.value, "low": each.low, "high": each.high} for name, each in biased.items()]
    return pd.DataFrame(rows)


def _markdown(
    frame: pd.DataFrame,
    truth: Truth,
    said: Sequence[str],
    table: pd.DataFrame,
    operators: pd.DataFrame,
    rates: Rates | None,
) -> str:
    order = truth.order
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
        f"{depths.min()} to {depths.max()} layers, losses {order.min():.4f} to {order.max():.4f} nats; "
        f"{_seeds_move(seed_spread(truth.losses))}. {len(frame)} losses on "
        f"{', '.join(sorted(set(frame['device'])))}; {failed} trainings failed.",
        "",
        "![Spearman over cost, ranks, rank errors](figure.png)",
        "",
        "Intervals are 95 % of a bootstrap over architectures. *Partial*: rank correlation given parameters. "
        "*Other seeds*: Spearman between losses of one seed and long ones of another, over the architectures that have "
        "several: where the short training is the beginning of the long one, their common seed alone makes them agree. "
        "Regret: how much worse than the true best the first choice is, and the best of the first three. *Sized*: the "
        "loss - size_weight x ln(non-embedding parameters / 10M). *Curve*: where a power law through the curve of one "
        "training's loss ends; *extrapolated*: one through the losses at several budgets.",
        "",
        _table(_shown(table)),
        "",
        "Mean rank errors of the budget named above, as shares of the list; below 0 it is favoured:",
        "",
        _table(_shown_operators(operators)),
        "",
    ]
    if rates:
        for losses, of in ((rates.losses, "losses"), (rates.sized, "losses corrected for size")):
            tau = f"Kendall's tau between the orders by {of} at two learning rates (all losses: rates.csv, rates.png):"
            lines += [tau, "", _table(agreements(losses)), ""]
    return "\n".join(lines)


def millions(count: float) -> str:
    """A number of tokens or parameters."""
    return f"{count / 1e6:.3g}M"


def _seeds_move(spread: float | None) -> str:
    """What there is to say of the standard deviation of losses over seeds."""
    if spread is None:
        return "how much a seed moves them is unknown, as each has one"
    return f"a seed moves them by {spread:.4f} nats (standard deviation)"


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that people read, as text."""

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
            "regret of first (nats)": number(row["regret_first"], ".4f"),
            "(seed sd)": number(row["regret_first_sd"], ".1f"),
            "of three (seed sd)": number(row["regret_three_sd"], ".1f"),
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
