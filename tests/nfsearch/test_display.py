from __future__ import annotations

import pytest

from nfsearch.support import terminal as display


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
