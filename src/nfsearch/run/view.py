"""Where a search stands, in a line and as a view for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table

from nfsearch.search.progress import Progress
from nfsearch.support.metrics import Metric
from nfsearch.support.terminal import duration


def search_line(progress: Progress, objective: Metric) -> str:
    """Where a search stands, in a line."""
    done = progress.standing.finished
    parts = [f"{done} of {progress.evaluations} evaluated", f"{len(progress.running)} running"]
    parts += [f"{count} {state}" for state in ("stopped", "failed") if (count := progress.count(state))]
    standing = progress.standing
    if standing.best:
        value = objective.unit.words(standing.best.value(objective.name))
        parts.append(f"best {objective.name} {value}")
    parts.append(f"front {len(standing.front)}")
    if refused := sum(standing.refused.values()):
        parts.append(f"{refused} skipped (over a limit, or seen before)")
    return ", ".join(parts) + f", {duration(progress.eta_seconds)} left"


def search_view(progress: Progress, objective: Metric) -> RenderableType:
    """The same for a terminal, with a line for each running candidate."""
    top = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=progress.evaluations, completed=progress.standing.finished, width=30)
    top.add_row(bar, search_line(progress, objective))
    lines = Table.grid(padding=(0, 2))
    for task in progress.running:
        loss = f"loss {task.loss:.3f}" if task.loss is not None else "starting"
        lines.add_row(f"  #{task.index}", duration(task.seconds), loss, task.architecture)
    return Group(top, lines)
