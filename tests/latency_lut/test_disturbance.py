"""Whether something else uses the machine, told by a clock and processors that are made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from nfsearch.latency_lut import disturbance
from nfsearch.latency_lut.disturbance import Watch, _Processors


class Machine:
    """Two processors, on which this process and others use some seconds, and known work that takes some."""

    def __init__(self, stat: Path) -> None:
        self.stat, self.clock, self.own, self.others, self.known_work = stat, 0.0, 0.0, 0.0, 1e-3
        self.run(0.0)

    def run(self, seconds: float, own: float = 0.0, others: float = 0.0) -> None:
        self.clock += seconds
        self.own += own
        self.others += others
        used = round((self.own + self.others) * disturbance._TICKS)
        # user, nice, system, idle, waiting, interrupts, soft interrupts, stolen, guests (which are users too)
        self.stat.write_text(f"cpu  {used} 0 0 99999 7777 0 0 0 {used} 0\ncpu0 1 2 3\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path / "stat")
    monkeypatch.setattr(disturbance, "_STAT", made.stat)
    monkeypatch.setattr(disturbance, "sample", lambda run, times, kind: made.known_work)
    clock = SimpleNamespace(perf_counter=lambda: made.clock, process_time=lambda: made.own)
    monkeypatch.setattr(disturbance, "time", clock)
    monkeypatch.setattr(disturbance.os, "cpu_count", lambda: 2)
    return made


def test_a_quiet_machine_disturbs_nothing(machine: Machine) -> None:
    with Watch("cpu").look() as seen:
        machine.run(10.0, own=20.0)
    assert seen.share == pytest.approx(0.0)


@pytest.mark.parametrize(("kind", "one_end", "both"), [("cpu", 0.0, 0.2), ("cuda", 0.4, 0.4)])
def test_known_work_that_is_slow_before_or_after_disturbs(
    machine: Machine, kind: str, one_end: float, both: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disturbance.torch, "randn", lambda *size, device: None)  # as if there were a GPU
    watch = Watch(kind)
    with watch.look() as seen:
        machine.run(1.0)
        machine.known_work *= 1.4
    assert seen.share == pytest.approx(one_end)
    with watch.look() as seen:
        machine.run(1.0)
    assert seen.share == pytest.approx(both)
    with watch.look() as seen:
        machine.run(1.0)
        machine.known_work /= 1.4
    assert seen.share == pytest.approx(one_end)
    with watch.look() as seen:
        machine.run(1.0)
    assert seen.share == pytest.approx(0.0)


def test_the_best_known_work_is_the_measure_whenever_it_was(machine: Machine) -> None:
    watch = Watch("cpu")
    machine.known_work /= 2  # the first was disturbed
    with watch.look() as seen:
        machine.run(1.0)
    assert seen.share == pytest.approx(0.0)
    machine.known_work *= 2
    with watch.look() as seen:
        machine.run(1.0)
    assert seen.share == pytest.approx(0.5)  # twice as slow, of which half counts on a CPU


def test_one_interrupt_is_no_disturbance(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch("cpu")
    tries = iter([9.0, *4 * [1e-3], *3 * [1e-3], 9.0, 1e-3])
    monkeypatch.setattr(disturbance, "sample", lambda run, times, kind: next(tries))
    with watch.look() as seen:
        machine.run(1.0)
    assert seen.share == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("own", "others", "share"),
    [
        (10.0, 10.0, 0.5),  # each has a processor
        (13.0, 5.0, 0.25),
        (10.0, 6.0, 0.0),  # a fifth is idle: they do not wait for each other
    ],
)
def test_others_disturb_where_hardly_any_processor_is_idle(
    machine: Machine, own: float, others: float, share: float
) -> None:
    with Watch("cpu").look() as seen:
        machine.run(10.0, own=own, others=others)
    assert seen.share == pytest.approx(share, abs=0.01)


def test_the_processors_do_not_count_where_the_device_is_a_gpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disturbance.torch, "randn", lambda *size, device: None)
    with Watch("cuda").look() as seen:
        machine.run(10.0, others=20.0)
    assert seen.share == pytest.approx(0.0)


def test_what_counts_as_busy(machine: Machine) -> None:
    """Idle time and time spent on waiting for a disk do not, stolen time does, and guests are users already."""
    machine.stat.write_text("cpu  100 20 30 4000 50 6 7 8 90 5\n")
    assert _Processors.now().busy == pytest.approx((100 + 20 + 30 + 6 + 7 + 8) / disturbance._TICKS)


@pytest.mark.parametrize("content", [None, "", "cpu\n", "cpu  1 2 3\n", "cpu  a b c d e f g h\n"])
def test_where_the_processors_are_not_shown_known_work_tells(machine: Machine, content: str | None) -> None:
    if content is None:
        machine.stat.unlink()
    else:
        machine.stat.write_text(content)
    watch = Watch("cpu")
    machine.known_work *= 1.6
    with watch.look() as seen:
        machine.clock, machine.own = 10.0, 20.0
    assert seen.share == pytest.approx(0.3)


def test_a_real_look_takes_a_moment_and_finds_a_share() -> None:
    with Watch("cpu").look() as seen:
        pass
    assert seen.share >= 0.0
