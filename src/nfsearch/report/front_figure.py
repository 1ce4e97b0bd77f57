"""The picture of a search's front: what was measured, how sure it is, and what was estimated beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nfsearch.report.pictures import png
from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.support.metrics import Measurements, Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FRONT, _OTHERS, _FAINT = "#0f766e", "#b45309", "0.65"


@dataclass(frozen=True)
class Point:
    """A candidate in the picture, in the units that are shown: x, y, half the error bars of both, and where the search
    had it before it was measured and confirmed."""

    number: int
    x: float
    y: float
    x_error: float
    y_error: float
    before: tuple[float, float]
    front: bool

    @property
    def moved(self) -> bool:
        """Whether something was measured or confirmed."""
        return self.before != (self.x, self.y)


def picture_points(result: RunResult) -> list[Point]:
    """The finalists, where some were confirmed, else the front: by the second objective (another metric, if there is
    but one)."""
    first, second = result.metric(result.objectives[0]), result.metric(result.across())
    if result.confirmed:
        known = {each.number: each.metrics for each in result.confirmed[0].finalists}
    else:
        known = {number: result.candidate(number).metrics for number in result.front}
    points = [
        _point(result.candidate(number), metrics, second, first, number in result.best_known)
        for number, metrics in known.items()
    ]
    return sorted(points, key=lambda point: (point.x, point.y))


def _point(record: CandidateRecord, found: Measurements, across: Metric, up: Metric, front: bool) -> Point:
    before = {**record.metrics, **record.estimates}
    return Point(
        number=record.number,
        x=found[across.name].value * across.unit.scale,
        y=found[up.name].value * up.unit.scale,
        x_error=found[across.name].error * across.unit.scale,
        y_error=found[up.name].error * up.unit.scale,
        before=(before[across.name].value * across.unit.scale, before[up.name].value * up.unit.scale),
        front=front,
    )


def front_png(result: RunResult) -> bytes:
    """The first objective over the second, the candidates that were evaluated once in the background."""
    from matplotlib.figure import Figure  # only now: it takes a second to import

    first, second = result.metric(result.objectives[0]), result.metric(result.across())
    points = picture_points(result)
    shown = {point.number for point in points}
    others = [record for record in result.in_state("done") if record.number not in shown]
    figure = Figure(figsize=(7.2, 4.6), dpi=144, layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    x = [record.metrics[second.name].value * second.unit.scale for record in others]
    y = [record.metrics[first.name].value * first.unit.scale for record in others]
    axes.scatter(x, y, s=20, color=_FAINT, linewidths=0, label=f"evaluated once ({len(others)})")
    _draw(axes, points, "Confirmed front" if result.confirmed else "Pareto front", len(result.objectives) == 2)
    axes.set(xlabel=second.label, ylabel=_label(result, first))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return png(figure)


def _label(result: RunResult, first: Metric) -> str:
    if not result.confirmed:
        return first.label
    seeds = sorted({each.seeds for each in result.confirmed[0].finalists})
    counts = " to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1]))))
    return f"{first.label}: mean of {counts} seed{'s' * (seeds[-1] > 1)}"


def _draw(axes: Axes, points: list[Point], name: str, stairs: bool) -> None:
    """The points with their error bars, and thin lines from where they were before."""
    moved = [point for point in points if point.moved]
    for point in moved:
        axes.plot([point.before[0], point.x], [point.before[1], point.y], color=_FAINT, linewidth=0.8, zorder=1)
    hollow: dict[str, Any] = {"facecolors": "white", "edgecolors": "0.45", "linewidths": 1.0, "zorder": 2}
    if moved:
        words = "as the search had them (time estimated, one seed)"
        axes.scatter([p.before[0] for p in moved], [p.before[1] for p in moved], s=26, label=words, **hollow)
    front, off = [p for p in points if p.front], [p for p in points if not p.front]
    if stairs:
        axes.step([p.x for p in front], [p.y for p in front], where="post", color=_FRONT, linewidth=1.2)
    for group, colour, words in ((front, _FRONT, name), (off, _OTHERS, "finalists off the front")):
        if group:
            x, y = [p.x for p in group], [p.y for p in group]
            axes.scatter(x, y, s=36, color=colour, zorder=4, label=f"{words} ({len(group)})")
    within = axes.get_xlim()  # an estimate that nobody can trust has a bar that would squeeze all points
    for point in points:
        colour = _FRONT if point.front else _OTHERS
        bar: dict[str, Any] = {"ecolor": colour, "elinewidth": 1.0, "capsize": 2.5, "zorder": 3}
        axes.errorbar(point.x, point.y, yerr=point.y_error, xerr=point.x_error, fmt="none", **bar)
        axes.annotate(f"{point.number}", (point.x, point.y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set_xlim(within)
