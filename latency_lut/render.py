"""A latency table as text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from nfsearch.latency_lut.keys import Key
from nfsearch.latency_lut.measured import Measured
from nfsearch.latency_lut.rows import MEASURED, Row


def render(table: Measured, widths: Sequence[int] | None = None) -> Table:
    """A line for each block and workload, a column for each width (all, if none are given); cells are milliseconds
    ± half the spread."""
    came, stale = table.provenance, set(table.stale())
    where = f"{came.device_name}, {came.threads} threads" if came.kind == "cpu" else came.device_name
    shown = Table(
        title=f"{where}: milliseconds per block",
        caption=f"torch {came.torch}, {came.date}; {len(table.rows)} rows; "
        "± half the interquartile range; * no difference was found, whole model"
        + (f"; ! {table.staleness()}" if stale else "")
        + (f"; ~ {disturbance}" if (disturbance := table.disturbance()) else ""),
    )
    keys = list(table.rows)
    widths = widths or table.widths
    several = [
        name for name in ("phase", "dtype", "batch", "others", "cache") if len({getattr(key, name) for key in keys}) > 1
    ]
    shown.add_column("block", overflow="fold")  # the one that may be broken where the terminal is narrow
    for name in (*several, "context"):
        shown.add_column(name, justify="left" if name in ("phase", "dtype", "cache") else "right", no_wrap=True)
    for width in widths:
        shown.add_column(str(width), justify="right", no_wrap=True)
    lines: dict[tuple[str, ...], dict[int, Row]] = {}
    for key in sorted(key for key in keys if key.width in widths):
        line = (key.block, *(str(getattr(key, name)) for name in several), str(key.context))
        lines.setdefault(line, {})[key.width] = table.rows[key]
    for line, cells in lines.items():
        shown.add_row(*line, *(_cell(cells.get(width), stale) for width in widths))
    return shown


def _cell(row: Row | None, stale: set[Key]) -> str:
    if row is None:
        return ""
    mark = ("~" if row.disturbed else "") + ("!" if row.key in stale else "")
    if row.latency_ms is None:
        return f"no memory{mark}"
    percent = 50 * row.spread_ms / row.latency_ms
    return f"{row.latency_ms:.4g} ±{percent:.0f}%{'' if row.status == MEASURED else '*'}{mark}"
