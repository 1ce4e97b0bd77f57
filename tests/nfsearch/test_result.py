from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from nfsearch.report.outputs import write_outputs
from nfsearch.report.result import RunResult
from nfsearch.support.files import write_atomically
from nfsearch.support.metrics import Measurement
from tests.nfsearch.fake_run import FAILED, NOTE, NOTED, STOPPED, fake_candidates, fake_verification, make_result


def test_saved_and_loaded_again_it_is_the_same(result: RunResult, tmp_path: Path) -> None:
    result.save(tmp_path / "result.json")
    assert RunResult.load(tmp_path / "result.json") == result


def test_the_file_holds_what_the_candidates_are(result: RunResult, tmp_path: Path) -> None:
    result.save(tmp_path / "result.json")
    fields = json.loads((tmp_path / "result.json").read_text())
    assert fields["schema_version"] == 4
    units = {metric["name"]: metric["unit"]["name"] for metric in fields["metrics"]}
    assert (units["loss"], units["tpot"], units["memory"]) == ("nats per token", "seconds", "bytes")
    for record, candidate in zip(fields["candidates"], fake_candidates(), strict=True):
        architecture = candidate.proposal.architecture
        assert record["notation"] == architecture.notation
        assert record["metrics"]["parameters"] == {"value": architecture.parameters, "error": 0}
        assert len(record["layers"]) == len(architecture.layers)
        cost = candidate.proposal.costs["tpot"]
        assert record["metrics"]["tpot"] == {
            "value": cost.value,
            "error": fake_verification().doubt("tpot").bar(cost.value, cost.error),
        }
        loss = candidate.metrics.get("loss")
        assert record["metrics"].get("loss") == (loss and {"value": loss.value, "error": 0})
        job = candidate.proposal.job
        assert (record["job"], record["seed"]) == (job.digest, job.seed)
        assert record["fidelity"] == job.fidelity.to_dict()
        found = candidate.evaluation
        assert record["rungs"] == ([list(rung) for rung in found.rungs] if found else [])
        assert record["state"] == candidate.state


def test_the_published_schema_describes_every_field() -> None:
    schema = RunResult.model_json_schema()
    assert set(RunResult.model_fields) == set(schema["properties"])


def test_the_front_holds_exactly_what_nothing_dominates(result: RunResult) -> None:
    check_front(result)


def check_front(result: RunResult) -> None:
    """It is exactly what nothing dominates among those within the limits, by the first objective."""
    points = {record.number: [record.value(name) or 0.0 for name in result.objectives] for record in result.admitted()}

    def dominated(a: list[float]) -> bool:
        return any(all(x <= y for x, y in zip(b, a, strict=True)) and b != a for b in points.values())

    assert set(result.front) == {number for number, point in points.items() if not dominated(point)}
    first = [points[number][0] for number in result.front]
    assert first == sorted(first)


@pytest.mark.parametrize("first", ["memory", "parameters", "bits_per_byte", "state", "tpot"])
def test_any_metric_can_be_the_first_objective(first: str) -> None:
    result = make_result(objectives=[first, "loss"])
    check_front(result)
    assert result.front
    best = min(value for record in result.in_state("done") if (value := record.value(first)) is not None)
    assert result.candidate(result.front[0]).value(first) == best
    assert result.hypervolume is not None
    assert list(result.hypervolume.reference) == [first, "loss"]


@pytest.mark.parametrize("name", ["loss", "bits_per_byte", "parameters_m", "state_mb"])
def test_a_limit_keeps_candidates_off_the_front(name: str) -> None:
    free = make_result()
    metric = next(each for each in free.metrics if name.startswith(each.name))
    values = sorted(free.candidate(number).metrics[metric.name].value for number in free.front)
    most = (values[0] + values[1]) / 2  # keeps one of the front
    unit = name.removeprefix(metric.name).removeprefix("_")
    result = make_result(limits={name: most / metric.unit.limits[unit]})
    assert result.limits[metric.name] == pytest.approx(most)
    check_front(result)
    assert {record.number for record in result.candidates} == {record.number for record in free.candidates}
    over = {record.number for record in result.in_state("done") if record.metrics[metric.name].value > most}
    assert over & set(free.front)
    assert not over & set(result.front)
    assert not over & {record.number for record in result.admitted()}


def test_losses_of_a_lower_fidelity_are_not_on_the_front() -> None:
    candidates = fake_candidates()
    number = make_result(candidates).front[0]
    proposal = candidates[number].proposal
    short = replace(proposal.job, fidelity=replace(proposal.job.fidelity, tokens=1000))
    candidates[number] = replace(candidates[number], proposal=replace(proposal, job=short))
    result = make_result(candidates)
    assert number not in result.front
    check_front(result)
    (record,) = [record for record in result.candidates if record.number == number]
    assert record.fidelity.tokens == 1000


def test_a_stopped_candidate_has_a_curve_and_no_place_on_the_front(result: RunResult) -> None:
    (record,) = result.in_state("stopped")
    assert record.number == STOPPED
    assert record.value("loss") is None
    assert record.value("tpot") is not None
    assert record.tokens == record.curve[-1][0] == 1_000_000
    assert record.error is None
    assert STOPPED not in result.front
    assert [failed.number for failed in result.in_state("failed")] == list(FAILED)


def test_what_workers_had_to_say_is_kept_with_the_candidates(result: RunResult, tmp_path: Path) -> None:
    result.save(tmp_path / "result.json")
    assert RunResult.load(tmp_path / "result.json").notes() == {NOTE: list(NOTED)}


def test_many_seeds_of_one_architecture_are_told_apart() -> None:
    first, *_ = fake_candidates()
    job = replace(first.proposal.job, seed=1)
    second = replace(first, number=1, proposal=replace(first.proposal, job=job))
    one, other = make_result([first, second]).candidates
    assert one.digest == other.digest
    assert one.job != other.job
    assert other.seed == 1


def test_the_hypervolume_grows_to_the_area_under_the_front(result: RunResult) -> None:
    assert result.hypervolume is not None
    volumes = [volume for _, volume in result.hypervolume.trajectory]
    assert volumes == sorted(volumes)
    assert volumes[-1] == result.hypervolume.value
    assert result.hypervolume.reference["tpot"] == result.limits["tpot"]
    corner = result.hypervolume.reference
    area, ceiling = 0.0, corner["loss"]
    points = [(record.metrics["tpot"].value, record.metrics["loss"].value) for record in result.admitted()]
    for time, loss in sorted(points):
        if loss < ceiling:
            area += (corner["tpot"] - time) * (ceiling - loss)
            ceiling = loss
    assert result.hypervolume.value == pytest.approx(area)


def test_a_run_without_candidates_and_one_with_failures_only() -> None:
    failed = [candidate for candidate in fake_candidates() if candidate.state == "failed"]
    for candidates in ([], failed):
        result = make_result(candidates)
        assert result.front == []
        assert result.hypervolume is None
        assert len(result.candidates) == len(candidates)


def test_a_curve_that_left_the_numbers_survives_the_file(tmp_path: Path) -> None:
    first, *_ = fake_candidates()
    assert first.evaluation is not None
    result = make_result([replace(first, evaluation=replace(first.evaluation, curve=((1, 2.0), (2, math.nan))))])
    result.save(tmp_path / "result.json")
    assert RunResult.load(tmp_path / "result.json").candidates[0].curve == [(1, 2.0), (2, None)]


@pytest.mark.parametrize("error", [math.inf, math.nan])
def test_an_error_bar_that_nobody_could_tell_survives_the_file(error: float, tmp_path: Path) -> None:
    """Such as a proxy's spread over a single sample."""
    first, *_ = fake_candidates()
    assert first.evaluation is not None
    found = replace(first.evaluation, metrics={**first.evaluation.metrics, "perplexity": Measurement(9.0, error)})
    write_outputs(make_result([replace(first, evaluation=found)]), tmp_path)
    (record,) = RunResult.load(tmp_path / "result.json").candidates
    assert record.metrics["perplexity"] == Measurement(9.0)


def test_a_huge_space_keeps_its_exact_count(result: RunResult, tmp_path: Path) -> None:
    count = 10**60 + 7
    huge = result.model_copy(update={"space": result.space.model_copy(update={"count": count})})
    huge.save(tmp_path / "result.json")
    assert RunResult.load(tmp_path / "result.json").space.count == count


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run": {}}', '{"schema_version": 4, "candidates": 3}'])
def test_another_file_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is not a result"):
        RunResult.load(path)


def test_another_schema_version_is_refused(result: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    for version in (2, 3):
        result.model_copy(update={"schema_version": version}).save(path)
        with pytest.raises(
            ValueError, match=f"result.json has schema version {version}, this nfsearch reads 4"
        ) as said:
            RunResult.load(path)
        assert len(str(said.value).splitlines()) == 1


def test_a_result_of_the_first_schema_is_refused_as_such(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"schema_version": 1, "objectives": [{"name": "loss", "unit": "nats"}], "candidates": []}')
    with pytest.raises(ValueError, match="has schema version 1, this nfsearch reads 4"):
        RunResult.load(path)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:1])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_value_of_something_that_the_run_does_not_measure_is_refused(result: RunResult) -> None:
    values = result.model_dump(mode="json")
    metrics = next(each["metrics"] for each in values["candidates"] if each["metrics"])
    metrics["colour"] = next(iter(metrics.values()))
    with pytest.raises(ValueError, match="has a value of colour, which this run does not measure"):
        RunResult.model_validate(values)
