"""A result as a picture (time of a layer against the memory's floor) and as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nfsearch.bench.schema import BenchResult, Comparison, Entry
from nfsearch.report.pictures import png

_OURS, _BASELINE, _FLOOR = "#2a6fb0", "#c9c9c9", "#d1495b"
_COLUMNS = 3


def draw(result: BenchResult) -> bytes:
    """A PNG with one panel for each layer, batch and context: ours, the fastest baseline and the floor over the widths.

    Raises ValueError if the result has no layers (only `nfsearch bench ops` has).
    """
    panels: dict[tuple[str, int, int], list[Comparison]] = {}
    for found in result.comparisons:
        if "layer" in found.case and found.floor_us:
            panels.setdefault((found.case["layer"], found.case["batch"], found.case["context"]), []).append(found)
    if not panels:
        raise ValueError("there is no layer in this result: expected one of `nfsearch bench ops`")
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(9.6, 2.8 * rows + 0.4), dpi=144, layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axis, ((layer, batch, context), comparisons) in zip(axes, panels.items(), strict=False):
        _panel(axis, comparisons)
        held = f", context {context}" if layer.startswith("A") else ""
        axis.set_title(f"{layer}   batch {batch}{held}", fontsize=9)
    for axis in axes[len(panels) :]:
        axis.remove()
    axes[0].legend(fontsize=8, frameon=False, loc="upper left")
    figure.suptitle(
        f"One decode step of a layer on {result.provenance['device_name']}, {result.settings['dtype']}", fontsize=11
    )
    return png(figure)


def _panel(axis: Axes, comparisons: Sequence[Comparison]) -> None:
    for i, found in enumerate(comparisons):
        best = next((e for e in found.entries if e.name == found.best_baseline), None)
        ours = next(e for e in found.entries if e.role == "ours")
        for entry, at, colour, label in (
            (ours, i - 0.2, _OURS, "nfsearch"),
            (best, i + 0.2, _BASELINE, "fastest baseline"),
        ):
            if entry and entry.median_us:
                bar = axis.bar(at, entry.median_us, 0.38, color=colour, label=label if i == 0 else None)
                axis.bar_label(bar, fmt="{:.1f}", fontsize=7)
        axis.hlines(
            found.floor_us or 0, i - 0.42, i + 0.42, colors=_FLOOR, linewidth=1.5, label="floor" if i == 0 else "_"
        )
    axis.set_xticks(range(len(comparisons)), [str(found.case["width"]) for found in comparisons])
    axis.set_xlabel("width", fontsize=8)
    axis.set_ylabel("µs", fontsize=8)
    axis.margins(y=0.18)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def markdown(result: BenchResult) -> str:
    """A line for each comparison: ours, the floor, and every baseline that ran (or why it did not)."""
    where, copy = result.provenance, result.bandwidth
    lines = [
        f"{where['device_name']}, driver {where['driver']}, torch {where['torch']}, triton {where['triton']}, "
        f"{where['date']}; copy {copy.bytes_per_s / 1e12:.2f} TB/s read and written; `{where['command']}`",
        "",
        "| what | nfsearch µs (IQR) | error | floor µs | x floor | fastest baseline µs | ours / baseline | others µs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [_line(found) for found in result.comparisons]
    lines += ["", *(f"{r.model} is {r.speedup:.2f} times as fast as {r.reference}" for r in result.ratios)]
    return "\n".join(lines).rstrip() + "\n"


def _line(found: Comparison) -> str:
    ours = next(e for e in found.entries if e.role == "ours")
    best = next((e for e in found.entries if e.name == found.best_baseline), None)
    others = [e for e in found.entries if e.role == "baseline" and e is not best]
    cells = [
        found.name,
        f"{ours.median_us:.2f} ({ours.iqr_us:.2f})" if ours.median_us else f"{ours.status}: {ours.reason}",
        _format(ours.error, ".1e"),
        _format(found.floor_us, ".2f"),
        _format(ours.floor_ratio, ".2f"),
        f"{best.name} {best.median_us:.2f}" if best and best.median_us else "",
        _format(found.ratio, ".2f"),
        "; ".join(map(_other, others)),
    ]
    return "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in cells) + " |"


def _other(entry: Entry) -> str:
    return f"{entry.name} {entry.median_us:.2f}" if entry.median_us else f"{entry.name} {entry.status}"


def _format(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
