"""What the terminal shows: progress and messages on stderr (live on a terminal, plain lines elsewhere), results on
stdout."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table


def plain_console(**options: Any) -> Console:
    """A console that shows texts as they are: brackets are a notation's, or a stranger's, and no markup."""
    return Console(markup=False, emoji=False, **options)


console = plain_console(stderr=True, highlight=False)
LINE_EVERY = 10.0  # seconds between two plain lines


def duration(seconds: float | None) -> str:
    """`1 h 02 min`, `3 min 05 s`, `4 s`; a question mark while unknown."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count > 1)}"


class Steps:
    """`n of m` with the time left, for work made of equal steps; those `before` were done by an earlier run."""

    def __init__(self, what: str, show: Callable[[RenderableType, str, bool], None]) -> None:
        self.what, self.show, self.began, self.before = what, show, time.monotonic(), 0

    def __call__(self, done: int, total: int) -> None:
        ran, steps = time.monotonic() - self.began, done - self.before
        left = ran / steps * (total - done) if steps > 0 else None
        text = f"{self.what}: {done} of {total}" + (f", {duration(left)} left" if done < total else "")
        row = Table.grid(padding=(0, 1))
        row.add_row(ProgressBar(total=max(total, 1), completed=done, width=30), text)
        self.show(row, text, done == total)


@contextmanager
def progress_display() -> Iterator[Callable[[RenderableType, str, bool], None]]:
    """Gives `show(view, line, last)`: the view is kept live on a terminal; elsewhere the line is printed now and then,
    and always where it is the last."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4, transient=False) as live:
            yield lambda view, line, last: live.update(view)
        return
    latest = 0.0

    def show(view: RenderableType, line: str, last: bool) -> None:
        nonlocal latest
        if last or time.monotonic() - latest > LINE_EVERY:
            latest = time.monotonic()
            console.print(line, soft_wrap=True)

    yield show


@contextmanager
def steps(what: str) -> Iterator[Steps]:
    with progress_display() as show:
        yield Steps(what, show)


def stdout() -> Console:
    """Standard output; wide where it is no terminal, so that tables in files do not break."""
    console = plain_console()
    return console if console.is_terminal else plain_console(width=160)


def say(text: str) -> None:
    """One line on stderr."""
    console.print(text, soft_wrap=True)


def alarm(text: str) -> None:
    """One line on stderr that is not to be missed."""
    console.print(text, style="bold red", soft_wrap=True)


def announce(text: str) -> None:
    """One line on stderr and in the log of the run."""
    say(text)
    logging.getLogger(__name__).warning("%s", text)
