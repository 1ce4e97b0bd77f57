"""A result as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from nfsearch.bench.schema import BenchResult, Candidate, Comparison, Entry

_HEAD = ("", "µs", "IQR", "% of copy", "x floor", "MFU %", "error", "first call s", "by")


def show_comparison(found: Comparison, console: Console) -> None:
    """One table: ours first, then the baselines, the fastest of them marked."""
    notes = [f"floor {found.floor_us:.2f} µs ({found.bytes / 1e6:.1f} MB)"] if found.floor_us and found.bytes else []
    if found.clock_mhz:
        notes.append(f"SM {found.clock_mhz:.0f} MHz")
    ours = next((e.median_us for e in found.entries if e.role == "ours"), None)
    if ours and "model" in found.case:
        tokens = found.case["batch"] * found.case.get("sequence", 1)
        notes.append(f"ours {1e6 * tokens / ours:.0f} tokens/s")
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
        return [name, entry.status, "", "", "", "", error, "", entry.reason]
    return [
        name,
        _number(entry.median_us, ".2f"),
        _number(entry.iqr_us, ".2f"),
        _number(entry.bandwidth_percent, ".1f"),
        _number(entry.floor_ratio, ".2f"),
        _number(entry.mfu_percent, ".1f"),
        error,
        _number(entry.first_call_s, ".2f"),
        entry.path,
    ]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def show_summary(result: BenchResult, console: Console) -> None:
    """What all comparisons share, and the ratios between models."""
    if result.candidate:
        _show_candidate(result.candidate, console)
    for ratio in result.ratios:
        spread = "" if ratio.spread is None else f" (± {ratio.spread:.2f})"
        console.print(f"{ratio.model} is {ratio.speedup:.2f}{spread} times as fast as {ratio.reference}")
    where, copy = result.provenance, result.bandwidth
    console.print(
        f"{where['device_name']}, torch {where['torch']}, copy {copy.bytes_per_s / 1e12:.3f} TB/s read and written "
        f"(working set {copy.working_set_bytes / 1e9:.2f} GB), {result.seconds:.0f} s; * = fastest baseline",
        soft_wrap=True,
    )


def _show_candidate(found: Candidate, console: Console) -> None:
    """The phases of each pass, and the kernels of a step if they were asked for."""
    console.print(
        f"{found.notation}  width {found.width}  {found.parameters / 1e6:.1f}M parameters  "
        f"{found.batch} x {found.sequence} tokens a step",
        soft_wrap=True,
    )
    table = Table("", box=None)
    for one in found.passes:
        table.add_column(one.name, justify="right")
    for name in dict.fromkeys(name for one in found.passes for name in one.phases):
        table.add_row(f"{name} s", *(_number(one.phases.get(name), ".2f") for one in found.passes))
    table.add_row("total s", *(f"{one.seconds:.2f}" for one in found.passes), style="bold")
    table.add_row("tokens/s of steps", *(f"{one.tokens_per_s:,.0f}" for one in found.passes))
    table.add_row("MFU %", *(_number(one.mfu_percent, ".1f") for one in found.passes))
    table.add_row("peak GB", *(_number(one.memory_gb, ".2f") for one in found.passes))
    table.add_row("loss", *(f"{one.loss:.4f}" for one in found.passes))
    console.print(table)
    for text in dict.fromkeys(text for one in found.passes for text in one.notes):
        console.print(f"note: {text}", soft_wrap=True)
    if found.kernels:
        _show_kernels(found, console)


def _show_kernels(found: Candidate, console: Console) -> None:
    total = sum(kernel.us for kernel in found.kernels)
    step = 1e6 * found.batch * found.sequence / found.passes[-1].tokens_per_s
    console.print(f"one launched step: {total:,.0f} µs of kernels; a step of the run took {step:,.0f} µs")
    table = Table(box=None)
    for name, justify in (("µs", "right"), ("%", "right"), ("calls", "right"), ("kernel", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for kernel in found.kernels:
        table.add_row(f"{kernel.us:,.0f}", f"{kernel.percent:.1f}", str(kernel.calls), kernel.name)
    console.print(table)
