"""The figure of a fidelity study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from nfsearch.report.pictures import png
from nfsearch.studies.agreement import Interval
from nfsearch.studies.predictors import Judged, Truth
from nfsearch.studies.rates import Rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_NAMED = 12  # lines that a legend names
_LONGEST = 40  # characters of a name there


def figure_png(
    found: Sequence[Judged], best: Judged, truth: Truth, biased: Mapping[str, Interval], target: float
) -> bytes:
    """Left: Spearman over the seconds of a candidate, a line for each recipe. Middle: ranks by the budget that is named
    over true ranks. Right: its mean rank errors."""
    from matplotlib.figure import Figure  # only now: it takes a second to import

    figure = Figure(figsize=(16, 5.2), dpi=144, layout="constrained")
    cost, ranks, errors = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    _draw_cost(cost, found, target)
    _draw_ranks(ranks, best, truth)
    _draw_errors(errors, biased)
    for axes in (cost, ranks, errors):
        axes.grid(color="0.92")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"{best.architectures} architectures; reference: {truth.recipe} at {truth.tokens / 1e6:g}M tokens", fontsize=11
    )
    return png(figure)


def rates_png(rates: Rates, truth: Truth) -> bytes:
    """How much worse than its best rate each architecture does with the others; the rule's is marked."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=144, layout="constrained")
    axes = figure.subplots()
    tried = [float(rate) for rate in rates.losses.columns]
    about = truth.about.loc[rates.losses.index]
    for i, losses in enumerate(rates.losses.to_numpy(float)):
        name = f"{about['notation'].iloc[i]} @ {about['width'].iloc[i]}"
        label = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
        color = colormaps["viridis"](i / len(about))
        axes.plot(tried, losses - losses.min(), marker="o", markersize=4, linewidth=1.2, color=color, label=label)
    axes.axvline(rates.rule, linestyle="--", linewidth=1, color="0.4")
    axes.set_xscale("log", base=2)
    axes.set_xticks(tried, [f"{rate:g}" for rate in tried])
    axes.set_xlabel("learning rate (dashed: the rule's)")
    axes.set_ylabel(f"loss at {rates.tokens / 1e6:g}M tokens above the best rate's (nats)")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    if len(about) <= _NAMED:
        axes.legend(frameon=False, fontsize=8)
    return png(figure)


def _draw_cost(axes: Axes, found: Sequence[Judged], target: float) -> None:
    from matplotlib import colormaps

    names = list(dict.fromkeys(sorted(each.predictor.recipe for each in found if each.predictor.kind != "free")))
    colors = {name: colormaps["tab10" if len(names) <= 10 else "tab20"](i) for i, name in enumerate(names)}
    for name in names:
        losses = sorted(
            (each for each in found if each.predictor.recipe == name and each.predictor.kind == "loss"),
            key=lambda each: each.predictor.tokens,
        )
        x, y = [each.predictor.seconds for each in losses], [each.spearman.value for each in losses]
        bars = [
            [max(0.0, each.spearman.value - each.spearman.low) for each in losses],
            [max(0.0, each.spearman.high - each.spearman.value) for each in losses],
        ]
        axes.errorbar(
            x, y, bars, color=colors[name], marker="o", markersize=4, linewidth=1.2, elinewidth=0.6, label=name
        )
    markers = {"sized": ("s", "sized"), "extrapolated": ("^", "extrapolated"), "curve": ("x", "curve")}
    for kind, (marker, label) in markers.items():
        others = [each for each in found if each.predictor.kind == kind]
        axes.scatter(
            [each.predictor.seconds for each in others],
            [each.spearman.value for each in others],
            marker=marker,
            s=26,
            color=[colors[each.predictor.recipe] for each in others],
        )
        axes.scatter([], [], marker=marker, s=26, color="0.4", label=label)
    for place, each in enumerate(each for each in found if each.predictor.kind == "free"):
        axes.axhline(each.spearman.value, color="0.6", linewidth=0.8, linestyle=":")
        axes.text(
            0.01 + 0.2 * place,  # beside one another, as the lines may nearly meet
            each.spearman.value,
            each.predictor.name,
            transform=axes.get_yaxis_transform(),
            fontsize=7,
            color="0.4",
            va="bottom",
        )
    axes.axhline(target, color="#0f766e", linewidth=1, linestyle="--")
    axes.set(xscale="log", xlabel="seconds a candidate (median)", ylabel="Spearman with the long order")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.legend(frameon=False, fontsize=8, loc="lower right")


def _draw_ranks(axes: Axes, best: Judged, truth: Truth) -> None:
    scores = best.predictor.scores
    both = scores.index.intersection(truth.order.index)
    true, placed = truth.order[both].rank(), scores[both].rank()
    points = axes.scatter(true, placed, c=truth.about.loc[both, "depth"], cmap="viridis", s=28, linewidths=0)
    axes.plot([1, len(both)], [1, len(both)], color="0.6", linewidth=1, linestyle="--", zorder=0)
    one = best.predictor
    axes.set(xlabel="true rank", ylabel=f"rank by {one.name} at {one.tokens / 1e6:g}M tokens")
    assert axes.figure is not None
    axes.figure.colorbar(points, ax=axes, label="layers", shrink=0.7)


def _draw_errors(axes: Axes, biased: Mapping[str, Interval]) -> None:
    names = list(biased)[::-1]
    for place, name in enumerate(names):
        each = biased[name]
        axes.plot([100 * each.low, 100 * each.high], [place, place], color="0.5", linewidth=1.2)
        axes.plot([100 * each.value], [place], "o", color="#b45309", markersize=5)
    axes.axvspan(-10, 10, color="0.96", zorder=0)
    axes.axvline(0, color="0.6", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="mean rank error (% of the list); left: favoured")
