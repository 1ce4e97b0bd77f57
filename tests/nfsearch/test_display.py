from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest

from nfsearch.run.view import search_line, search_view
from nfsearch.search import History, Limits
from nfsearch.search.progress import Progress, Standing, Tally, Training
from nfsearch.support import terminal as display
from nfsearch.support.metrics import BYTES, NATS, Metric
from nfsearch.support.terminal import plain_console
from tests.nfsearch.fake_run import fake_candidates, make_result


def test_the_time_left_is_told_by_the_steps_of_this_run(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    lines: list[str] = []
    step = display.Steps("rows", lambda view, line, last: lines.append(line))
    step.before = 90
    step(90, 100)
    now[0] += 20
    step(95, 100)
    step(100, 100)
    assert lines == ["rows: 90 of 100, ? left", "rows: 95 of 100, 20 s left", "rows: 100 of 100"]


def progress(objectives: list[str]) -> Progress:
    candidates = fake_candidates()
    running = (Training(40, "D F @ 256", 5.0, 1), Training(41, "[red]A F @ 256", 9.0, 1, 100, 2.5))
    standing = Tally(objectives, Limits(), candidates).standing
    return Progress(50, History(candidates), 2, running, standing, eta_seconds=65.0)


@pytest.mark.parametrize("metric", [Metric("loss", NATS), Metric("memory", BYTES)], ids=["loss", "memory"])
def test_a_line_tells_where_a_search_stands_by_its_first_objective(metric: Metric) -> None:
    objectives = [metric.name, "tpot"]
    result = make_result(objectives=objectives, limits={})
    best = metric.unit.words(result.candidate(result.front[0]).metrics[metric.name].value)
    assert search_line(progress(objectives), metric) == (
        f"40 of 50 evaluated, 2 running, 1 stopped, 2 failed, best {metric.name} {best}, "
        f"front {len(result.front)}, 10 skipped (over a limit, or seen before), 1 min 05 s left"
    )
    nothing = replace(progress(objectives), history=History(), running=(), standing=Standing(), eta_seconds=None)
    assert search_line(nothing, metric) == "0 of 50 evaluated, 0 running, front 0, ? left"


def test_the_view_has_a_line_for_each_that_runs() -> None:
    console = plain_console(width=160, record=True, file=StringIO())
    console.print(search_view(progress(["loss", "tpot"]), Metric("loss", NATS)))
    text = console.export_text()
    assert "40 of 50 evaluated" in text
    assert [line.split() for line in text.splitlines() if line.startswith("  #")] == [
        ["#40", "5", "s", "starting", "D", "F", "@", "256"],
        ["#41", "9", "s", "loss", "2.500", "[red]A", "F", "@", "256"],
    ]
