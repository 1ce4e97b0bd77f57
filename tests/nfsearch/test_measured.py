"""The front of a run timed as whole models, and a check of the table that is bad."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nfsearch.latency_lut import verify
from nfsearch.latency_lut.timing import CPU
from nfsearch.latency_lut.verification import Check
from nfsearch.report.result import MISFIT, RunResult
from nfsearch.run.finalists import near_front, peeled
from nfsearch.support.metrics import Measurement
from tests.latency_lut.helpers import made_up_check
from tests.nfsearch.fake_run import fake_timings, fake_verification, make_result
from tests.nfsearch.runs import tiny_config

Command = Callable[..., tuple[str, str]]


def test_a_bad_table_is_told_everywhere_and_the_front_is_measured(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of these tests is invented, so it is far off."""
    quick = dataclasses.replace(CPU, warm_up=0.0, least=2, most=2)
    monkeypatch.setattr(verify, "bounds", lambda kind: quick)
    monkeypatch.setattr(verify, "warm_up", lambda kind: None)
    config = tiny_config(tmp_path, latency={"verify": 2}, search={"evaluations": 4})
    out, err = command("run", config, "--out", "run", "--strict", status=1)
    result = RunResult.load(tmp_path / "run" / "result.json")
    assert result.table is not None
    assert result.table.trusted is False
    (complaint,) = result.table.complaints
    assert complaint.startswith("tpot: estimates are ")
    assert complaint.endswith("% off on average, more than 10%")
    assert f"DO NOT TRUST estimated latencies; those of the front were measured: {complaint}" in err
    assert f"nfsearch: --strict: DO NOT TRUST estimated latencies; those of the front were measured: {complaint}" in err
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<div class="card bad"><span>Can the latencies be trusted?</span><b>No' in page
    assert f"Do not trust the estimated latencies.</b> {complaint}" in page

    assert result.front
    timed = [record for record in result.candidates if record.estimates]
    assert set(result.front) <= {record.number for record in timed}
    for record in timed:
        assert record.metrics["tpot"].value != record.estimates["tpot"].value
        better = [
            other
            for other in timed
            if all(other.metrics[name].value < record.metrics[name].value for name in result.objectives)
        ]
        assert (record.number in result.front) == (not better)
    assert "estimated" in out
    assert "One seed each. Which order holds: nfsearch confirm run" in err
    assert result.table.timed["tpot"].models == len(timed)

    monkeypatch.setattr(verify, "time_whole", None)  # what is timed is not timed again
    trust = ("--set", "latency.trust={mape: 1e6, spearman: -1}")
    _, err = command("run", "--resume", "run", "--strict", *trust)
    assert "DO NOT TRUST" not in err
    again = RunResult.load(tmp_path / "run" / "result.json")
    assert (again.front, again.table and again.table.trusted) == (result.front, True)


def test_who_leaves_the_front_by_a_limit_when_timed_is_named(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(table: object, models: Any, *rest: object, **how: object) -> Iterator[tuple[str, dict[str, Check]]]:
        for architecture, workloads in models:
            yield (
                architecture.digest,
                {name: made_up_check(1, 7000, digest=architecture.digest, workload=name) for name in workloads},
            )

    monkeypatch.setattr(verify, "time_whole", slow)
    monkeypatch.setattr(verify, "warm_up", lambda kind: None)
    config = tiny_config(tmp_path, latency={"verify": 2}, limits={"tpot_ms": 6000}, search={"evaluations": 4})
    _, err = command("run", config, "--out", "run")
    assert "leaves the front: as a whole model it is over the limit on tpot (7,000 ms against 6,000 ms)" in err
    assert RunResult.load(tmp_path / "run" / "result.json").front == []


def test_without_a_check_strict_fails_too(tmp_path: Path, command: Command) -> None:
    config = tiny_config(tmp_path, search={"evaluations": 4})
    _, err = command("run", config, "--out", "run", "--strict", status=1)
    assert "BEWARE" in err
    assert "nfsearch: --strict: the latency table was never checked" in err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["table"]["trusted"] is None
    assert not any(record["estimates"] for record in result["candidates"])


def test_the_error_bar_of_an_estimate_holds_what_the_check_says() -> None:
    doubt = fake_verification().doubt("tpot")
    for record, unchecked in zip(make_result().candidates, make_result(verified=False).candidates, strict=True):
        noise = unchecked.metrics["tpot"]
        assert record.metrics["tpot"] == Measurement(noise.value, doubt.bar(noise.value, noise.error))
        assert record.metrics["tpot"].error > noise.error


def test_the_front_is_chosen_by_measured_times() -> None:
    guessed = make_result()
    first, second, *others = guessed.front
    # The best by loss turns out to be within the limit, the second to be slower than the first.
    slow = 1.1 * guessed.candidate(first).metrics["tpot"].value / guessed.candidate(second).metrics["tpot"].value
    result = make_result(timings=fake_timings({first: 1.0, second: slow, **dict.fromkeys(others, 1.0)}))
    assert result.front == [first, *others]
    record = result.candidate(second)
    assert record.estimates["tpot"] == guessed.candidate(second).metrics["tpot"]
    assert record.metrics["tpot"].value == pytest.approx(slow * record.estimates["tpot"].value)
    assert record.metrics["tpot"].error == pytest.approx(record.metrics["tpot"].value / 100)
    assert [each.number for each in result.contenders()] == sorted(guessed.front)


def test_measured_times_count_once_the_whole_front_has_them() -> None:
    front = make_result().front
    assert make_result(timings=fake_timings(dict.fromkeys(front[1:], 3.0))) == make_result()


def test_what_is_over_a_limit_when_measured_or_does_not_fit_leaves_the_front() -> None:
    first, second, *others = make_result().front
    result = make_result(timings=fake_timings({first: 100.0, second: 0, **dict.fromkeys(others, 1.0)}))
    assert result.front == others
    assert MISFIT in result.candidate(second).notes
    assert not result.candidate(second).estimates


def test_what_the_error_bars_reach_is_near_the_front() -> None:
    result = make_result(limits={})
    near = [record.number for record in near_front(result)]
    assert near[: len(result.front)] == result.front
    for record in result.in_state("done"):
        beaten = any(
            other is not record
            and other.metrics["loss"].value <= record.metrics["loss"].value
            and record.metrics["tpot"].value - other.metrics["tpot"].value
            >= (other.metrics["tpot"].error ** 2 + record.metrics["tpot"].error ** 2) ** 0.5
            for other in map(result.candidate, result.front)
        )
        assert (record.number in near) == (not beaten)
    assert len(result.front) < len(near) < len(result.in_state("done"))


def test_peeling_takes_everyone_once() -> None:
    done = make_result().in_state("done")
    assert sorted(record.number for record in peeled(done, ["loss", "tpot"])) == [record.number for record in done]
