"""A result as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nfsearch.bench.schema import BenchResult, Comparison, Entry

_HEAD = ("", "µs", "IQR", "% of copy", "x floor", "error", "first call s", "by")


def show_comparison(found: Comparison, console: Console) -> None:
    """One table: ours first, then the baselines, the fastest of them marked."""
    notes = [f"floor {found.floor_us:.2f} µs ({found.bytes / 1e6:.1f} MB)"] if found.floor_us and found.bytes else []
    if found.clock_mhz:
        notes.append(f"SM {found.clock_mhz:.0f} MHz")
    ours = next((e.median_us for e in found.entries if e.role == "ours"), None)
    if ours and "model" in found.case:
        notes.append(f"ours {1e6 * found.case['batch'] / ours:.0f} tokens/s")
    if found.ratio:
        notes.append(f"ours / best baseline {found.ratio:.2f}")
    table = Table(
        title=Text(found.name), caption=Text(", ".join(notes)), title_justify="left", caption_justify="left", box=None
    )
    for i, name in enumerate(_HEAD):
        table.add_column(name, justify="left" if i in (0, len(_HEAD) - 1) else "right", overflow="fold")
    for entry in found.entries:
        table.add_row(*_cells(entry, entry.name == found.best_baseline))
    console.print(table)


def _cells(entry: Entry, best: bool) -> list[str]:
    name = ("* " if best else "  ") + entry.name
    error = _number(entry.error, ".1e")
    if entry.status != "measured":
        return [name, entry.status, "", "", "", error, "", entry.reason]
    return [
        name,
        _number(entry.median_us, ".2f"),
        _number(entry.iqr_us, ".2f"),
        _number(entry.bandwidth_percent, ".1f"),
        _number(entry.floor_ratio, ".2f"),
        error,
        _number(entry.first_call_s, ".2f"),
        entry.path,
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def show_summary(result: BenchResult, console: Console) -> None:
    """What all comparisons share, and the ratios between models."""
    for ratio in result.ratios:
        console.print(f"{ratio.model} is {ratio.speedup:.2f} times as fast as {ratio.reference}")
    where, copy = result.provenance, result.bandwidth
    console.print(
        f"{where['device_name']}, torch {where['torch']}, copy {copy.bytes_per_s / 1e12:.3f} TB/s read and written "
        f"(working set {copy.working_set_bytes / 1e9:.2f} GB), {result.seconds:.0f} s; * = fastest baseline",
        soft_wrap=True,
    )
