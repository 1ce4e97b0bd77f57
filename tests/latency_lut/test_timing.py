from __future__ import annotations

import dataclasses

import pytest

from nfsearch.latency_lut import timing
from nfsearch.latency_lut.timing import CPU, Samples


def test_samples_combine() -> None:
    samples = Samples([[1.0, 2.0, 3.0], [10.0, 10.0, 14.0]])
    value, spread = samples.combine(-0.5, 0.5)
    assert value == 4.0
    assert spread == pytest.approx(0.5 * (1**2 + 2**2) ** 0.5)


def test_disturbed_samples_do_not_count_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0] * 5 + [1.0, 50.0, 9.0, 1.0, 70.0] * 100)
    monkeypatch.setattr(timing, "sample", lambda run, repeats, kind: next(times))
    within = dataclasses.replace(CPU, warm_up=0, keep=0.25, least=20, most=40)
    samples = timing.take([lambda: None], (1.0,), "cpu", within)
    assert set(samples.runs[0]) == {1.0}
    assert samples.count == 5  # agreed at once: a quarter of the least


def test_sampling_stops_at_its_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(float(i) for i in range(1, 1000))
    monkeypatch.setattr(timing, "sample", lambda run, repeats, kind: next(times))
    within = dataclasses.replace(CPU, warm_up=0, keep=1.0, least=4, most=30, seconds=60.0)
    assert timing.take([lambda: None], (1.0,), "cpu", within).count == 30
    content = dataclasses.replace(within, target=1e9)
    assert timing.take([lambda: None], (1.0,), "cpu", content).count == 5  # what a turn has
    hurried = dataclasses.replace(within, seconds=0.0)
    assert timing.take([lambda: None], (1.0,), "cpu", hurried).count == 5
