"""What the driver of a search costs for each evaluation, without the time of workers: a search whose candidates are
evaluated at once, through the real loop, strategy, view and study.

    python -m tests.search.driver_cost [--to 10000] [--rule]

Prints the milliseconds of an evaluation, on the clock and of the processor, around each of some numbers of candidates.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nfsearch.run.view import search_line, search_view
from nfsearch.search.loop import Loop
from nfsearch.search.progress import Progress
from nfsearch.search.rules.median import Median, MedianSettings
from nfsearch.search.study import create_study, open_store
from nfsearch.testing.samples import LOSS, SampleProxy, small_space
from tests.search.fakes import METRICS, OBJECTIVES, HandExecutor, strategy

MARKS = (500, 2_000, 5_000, 10_000)
SPAN = 200  # evaluations that a figure is the mean of


def costs(folder: Path, evaluations: int, *, rule: bool = False) -> dict[int, tuple[float, float]]:
    """Seconds of an evaluation, on the clock and of the processor, after so many others."""
    space = small_space(width=(128, 256, 512), layers="(mixer F{0..2})*{2..8} mixer")
    chosen = strategy(space=space, evaluations=evaluations, population=40, tournament=8)

    def choices(answers: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        return {question.name: question.options for question in space.build(answers).questions}

    objectives = [METRICS[name] for name in OBJECTIVES]
    create_study(folder / "study.journal", "run", objectives=objectives, fingerprint={})
    times: list[tuple[float, float]] = []

    def tell(now: Progress) -> None:
        search_view(now, LOSS), search_line(now, LOSS)
        if now.standing.finished == len(times):
            times.append((time.perf_counter(), time.process_time()))

    with open_store(folder / "study.journal", metrics=METRICS, fingerprint={}, choices=choices) as store:
        limits = chosen.budgets.limits  # type: ignore[attr-defined]
        stops = Median(MedianSettings(kind="median")) if rule else None
        Loop(chosen, store, HandExecutor(SampleProxy(), 1), limits, evaluations=evaluations, rule=stops).run(tell)
    marks = [mark for mark in MARKS if mark < evaluations] or [evaluations - 1]
    found: dict[int, tuple[float, float]] = {}
    for mark in marks:
        first, last = times[max(mark - SPAN, 0)], times[mark]
        found[mark] = tuple((b - a) / min(SPAN, mark) for a, b in zip(first, last, strict=True))  # type: ignore[assignment]
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--to", type=int, default=MARKS[-1], help="evaluations")
    options.add_argument("--rule", action="store_true", help="with the median rule")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for mark, (clock, processor) in costs(Path(folder), given.to + 1, rule=given.rule).items():
            print(f"{mark:6} evaluations: {clock * 1e3:.2f} ms each, {processor * 1e3:.2f} ms of the processor")


if __name__ == "__main__":
    main()
