"""What may predict the order of a long training, and how well each does.

Predictors are the loss of each recipe at each of its budgets, the same corrected for size, what a power law makes of
the losses up to a budget or of the training curve, and what is known without any training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from nfsearch.proxies.extrapolation import LEAST_POINTS, fit_power_law
from nfsearch.proxies.size import sized
from nfsearch.studies.agreement import (
    Interval,
    Regret,
    across_seeds,
    kendall,
    mean_error,
    partial,
    rank_errors,
    regret,
    seed_spread,
    spearman,
)
from nfsearch.studies.results import LAYERS

FEWEST = 3  # architectures that a predictor is judged by, at least
_EARLY = 0.2  # of a curve's tokens, left out of its power law: the warm-up and what follows at once
_FREE = {"parameters": "most parameters", "flops_per_token": "most FLOPs", "depth": "most layers"}


@dataclass(frozen=True)
class Predictor:
    """`losses` are its scores, lower is better: [architectures by number, seeds]; `seconds` those that a candidate
    takes, the median."""

    name: str
    kind: str  # loss, sized, extrapolated, curve or free
    recipe: str
    tokens: int
    losses: pd.DataFrame
    seconds: float

    @property
    def scores(self) -> pd.Series:
        """Of the first seed, with which a search would train."""
        return self.losses.iloc[:, 0].dropna()


@dataclass(frozen=True)
class Truth:
    """The losses of the long training, [architectures by number, seeds], and the architectures' other columns."""

    recipe: str
    tokens: int
    losses: pd.DataFrame
    about: pd.DataFrame

    @property
    def order(self) -> pd.Series:
        """The mean over the seeds, of those that did not diverge."""
        return self.losses.replace(np.inf, np.nan).mean(axis=1).dropna()


@dataclass(frozen=True)
class Judged:
    """How well a predictor does. Regrets are of its first choice and of the best of its first three; `spread` is the
    standard deviation of its losses over architectures, `seed_spread` that over seeds."""

    predictor: Predictor
    architectures: int
    spearman: Interval
    kendall: Interval
    partial: Interval
    across_seeds: float | None
    regret_first: Regret
    regret_three: Regret
    spread: float
    seed_spread: float | None


def truth_of(frame: pd.DataFrame, recipe: str, tokens: int) -> Truth:
    """Raises ValueError where too few of the long trainings are done."""
    losses = by_seed(frame, recipe, tokens)
    about = frame.drop_duplicates("number").set_index("number")
    found = Truth(recipe, tokens, losses, about)
    if losses.empty or len(found.order) < FEWEST:
        raise ValueError(
            f"fewer than {FEWEST} architectures have the loss of the reference, {recipe} at {tokens:,} tokens: "
            "there is nothing to compare with yet"
        )
    return found


def predictors(
    frame: pd.DataFrame, truth: Truth, stable: Mapping[str, float], weights: Mapping[str, float]
) -> Iterator[Predictor]:
    """All of them but the reference itself and its recipe at more tokens than that. `stable` says, of the recipes whose
    rate is constant first, up to which share of a budget's tokens it is: there the curve of the training loss follows a
    law. `weights` are the `size_weight` of the recipes that have one."""
    for column, name in _FREE.items():
        yield Predictor(name, "free", "", 0, (-truth.about[column].astype(float)).to_frame(0), 0.0)
    for recipe in frame["recipe"].unique():
        budgets = sorted(frame.loc[frame["recipe"] == recipe, "tokens"].unique())
        seconds = {tokens: _seconds(frame, recipe, tokens) for tokens in budgets}
        for count, tokens in enumerate(budgets, start=1):
            if recipe == truth.recipe and tokens >= truth.tokens:
                continue
            losses = by_seed(frame, recipe, tokens)
            yield Predictor(recipe, "loss", recipe, tokens, losses, seconds[tokens])
            if recipe in weights:
                found = losses.apply(sized, args=(truth.about["non_embedding_parameters"], weights[recipe]))
                yield Predictor(f"{recipe}, sized", "sized", recipe, tokens, found, seconds[tokens])
            if recipe in stable and count >= LEAST_POINTS and tokens < truth.tokens:
                found = _last(_extrapolated(frame, recipe, budgets[:count], truth.tokens), losses)
                # One trunk gives all of the budgets: beyond the last, the others cost their decays.
                cost = seconds[tokens] + sum((1 - stable[recipe]) * seconds[each] for each in budgets[: count - 1])
                yield Predictor(f"{recipe}, extrapolated", "extrapolated", recipe, tokens, found, cost)
            if recipe in stable and tokens < truth.tokens:
                found = _last(_from_curves(frame, recipe, tokens, stable[recipe], truth.tokens), losses)
                yield Predictor(f"{recipe}, curve", "curve", recipe, tokens, found, seconds[tokens])


def judge(predictor: Predictor, truth: Truth) -> Judged | None:
    """None where it scores too few of the architectures whose long training is done."""
    both = _both(predictor, truth)
    if len(both) < FEWEST:
        return None
    scores, order = both["score"].to_numpy(float), both["truth"].to_numpy(float)
    parameters = truth.about.loc[both.index, "parameters"].to_numpy(float)
    finite = predictor.scores.replace(np.inf, np.nan)
    itself = predictor.name == _FREE["parameters"]  # given which nothing is left of it
    return Judged(
        predictor,
        len(both),
        spearman(scores, order),
        kendall(scores, order),
        Interval(*[math.nan] * 3) if itself else partial(scores, order, parameters),
        across_seeds(predictor.losses, truth.losses) if predictor.kind != "free" else None,
        regret(scores, order, 1),
        regret(scores, order, 3),
        float(finite.std()),
        seed_spread(predictor.losses),
    )


def favours(predictor: Predictor, truth: Truth) -> dict[str, Interval]:
    """The mean rank error of each operator: see `of_operators`; of the architectures without FFN; and of each third by
    depth."""
    about = truth.about.loc[_both(predictor, truth).index]
    ffn = about[f"{LAYERS}F"] if f"{LAYERS}F" in about else pd.Series(0, index=about.index)
    groups = {"without F": (ffn == 0).astype(float)}
    for _, depths in about["depth"].groupby(pd.qcut(about["depth"], 3, duplicates="drop"), observed=True):
        inside = about["depth"].between(depths.min(), depths.max())
        depth = depths.min() if depths.min() == depths.max() else f"{depths.min()} to {depths.max()}"
        groups[f"{depth} layers"] = inside.astype(float)
    return of_operators(predictor, truth) | _mean_errors(predictor, truth, groups)


def of_operators(predictor: Predictor, truth: Truth) -> dict[str, Interval]:
    """The mean rank error of each operator, an architecture counting as much as the operator's share of its layers (of
    its mixers, for a mixer). As a share of the list: below 0 it is favoured."""
    about = truth.about.loc[_both(predictor, truth).index]
    weights = {
        name.removeprefix(LAYERS): about[name] / about["depth"] for name in about.columns if name.startswith(LAYERS)
    }
    ffn = weights.get("F", pd.Series(0.0, index=about.index))
    shares = {name: share if name == "F" else share / (1 - ffn).clip(lower=1e-9) for name, share in weights.items()}
    return _mean_errors(predictor, truth, shares)


def _mean_errors(predictor: Predictor, truth: Truth, weights: Mapping[str, pd.Series]) -> dict[str, Interval]:
    """By name, of those that some architecture has a weight of."""
    both = _both(predictor, truth)
    errors = rank_errors(both["score"].to_numpy(float), both["truth"].to_numpy(float))
    return {name: mean_error(errors, weight.to_numpy(float)) for name, weight in weights.items() if weight.sum() > 0}


def _both(predictor: Predictor, truth: Truth) -> pd.DataFrame:
    """Columns score and truth of the architectures that have both."""
    return pd.concat([predictor.scores.rename("score"), truth.order.rename("truth")], axis=1).dropna()


def _rows(frame: pd.DataFrame, recipe: str, tokens: int) -> pd.DataFrame:
    return frame[(frame["recipe"] == recipe) & (frame["tokens"] == tokens)]


def by_seed(frame: pd.DataFrame, recipe: str, tokens: int) -> pd.DataFrame:
    """Losses, [architectures by number, seeds]; infinite where the training diverged before."""
    diverged = frame[(frame["recipe"] == recipe) & (frame["state"] == "diverged") & (frame["tokens"] < tokens)]
    rows = pd.concat([_rows(frame, recipe, tokens), diverged]).drop_duplicates(["number", "seed"])
    return rows.pivot(index="number", columns="seed", values="loss").sort_index(axis=1)


def _seconds(frame: pd.DataFrame, recipe: str, tokens: int) -> float:
    rows = _rows(frame, recipe, tokens)
    return float(rows.loc[rows["state"] == "done", "seconds"].median())


def _extrapolated(frame: pd.DataFrame, recipe: str, budgets: list[int], to: int) -> pd.DataFrame:
    """What the losses at these budgets say of the loss at `to` tokens."""
    rows = frame[(frame["recipe"] == recipe) & frame["tokens"].isin(budgets)]

    def at(group: pd.DataFrame) -> float:
        group = group.sort_values("tokens")
        return _law(group["tokens"].to_numpy(float), group["loss"].to_numpy(float), to)

    return _grouped(rows, at)


def _from_curves(frame: pd.DataFrame, recipe: str, tokens: int, stable: float, to: int) -> pd.DataFrame:
    """What the training losses at a constant rate say of those after `to` tokens."""

    def at(group: pd.DataFrame) -> float:
        points = np.asarray(group["curve_tokens"].iloc[0], float)
        losses = np.asarray(group["curve_losses"].iloc[0], float)
        inside = (points > _EARLY * tokens) & (points <= stable * tokens)
        return _law(points[inside], losses[inside], to)

    return _grouped(_rows(frame, recipe, tokens), at)


def _last(scores: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """The scores, infinite where the loss is."""
    return scores.reindex_like(losses).mask(np.isinf(losses), np.inf)


def _law(tokens: np.ndarray, losses: np.ndarray, to: int) -> float:
    """Not a number where no law can be had."""
    try:
        return fit_power_law(tokens.tolist(), losses.tolist()).at(to).value
    except ValueError:
        return np.nan


def _grouped(rows: pd.DataFrame, at: Callable[[pd.DataFrame], float]) -> pd.DataFrame:
    found = {key: at(group) for key, group in rows.groupby(["number", "seed"])}
    series = pd.Series(found, dtype=float)
    series.index = pd.MultiIndex.from_tuples(list(found), names=["number", "seed"])
    return series.unstack("seed")
