from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from nfsearch.report.result import RunResult
from nfsearch.support.files import write_atomically
from tests.nfsearch.fake_run import fake_candidates, make_result


def test_saved_and_loaded_again_it_is_the_same(result: RunResult, tmp_path: Path) -> None:
    result.save(tmp_path / "result.json")
    assert RunResult.load(tmp_path / "result.json") == result


def test_the_file_holds_what_the_candidates_are(result: RunResult, tmp_path: Path) -> None:
    result.save(tmp_path / "result.json")
    fields = json.loads((tmp_path / "result.json").read_text())
    assert fields["schema_version"] == 1
    for record, candidate in zip(fields["candidates"], fake_candidates(), strict=True):
        architecture = candidate.proposal.architecture
        assert record["notation"] == architecture.notation
        assert record["parameters"] == architecture.parameters
        assert len(record["layers"]) == len(architecture.layers)
        assert record["latency"]["tpot"]["seconds"] == candidate.proposal.costs["tpot"][0]
        assert record["loss"] == (candidate.score.loss if candidate.score else None)


def test_the_published_schema_describes_every_field() -> None:
    schema = RunResult.model_json_schema()
    assert set(RunResult.model_fields) == set(schema["properties"])


def test_the_front_holds_exactly_what_nothing_dominates(result: RunResult) -> None:
    done = [record for record in result.candidates if record.state == "done"]

    def dominated(a: dict[str, float]) -> bool:
        return any(all(b.values[k] <= a[k] for k in a) and b.values != a for b in done)

    assert set(result.front) == {record.number for record in done if not dominated(record.values)}
    losses = [result.candidate(number).values["loss"] for number in result.front]
    assert losses == sorted(losses)


def test_the_hypervolume_grows_to_the_area_under_the_front(result: RunResult) -> None:
    assert result.hypervolume is not None
    volumes = [volume for _, volume in result.hypervolume.trajectory]
    assert volumes == sorted(volumes)
    assert volumes[-1] == result.hypervolume.value
    corner = result.hypervolume.reference
    area, ceiling = 0.0, corner["loss"]
    for record in sorted(map(result.candidate, result.front), key=lambda record: record.values["tpot"]):
        area += (corner["tpot"] - record.values["tpot"]) * (ceiling - record.values["loss"])
        ceiling = record.values["loss"]
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
    object.__setattr__(first.score, "curve", ((1, 2.0), (2, math.nan)))
    result = make_result([first])
    result.save(tmp_path / "result.json")
    assert RunResult.load(tmp_path / "result.json").candidates[0].curve == [(1, 2.0), (2, None)]


def test_a_huge_space_keeps_its_exact_count(result: RunResult, tmp_path: Path) -> None:
    count = 10**60 + 7
    huge = result.model_copy(update={"space": result.space.model_copy(update={"count": count})})
    huge.save(tmp_path / "result.json")
    assert RunResult.load(tmp_path / "result.json").space.count == count


@pytest.mark.parametrize("content", ["", "{", "[]", '{"run": {}}', '{"schema_version": 1, "candidates": 3}'])
def test_another_file_is_refused_by_name(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is not a result"):
        RunResult.load(path)


def test_another_schema_version_is_refused(result: RunResult, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result.model_copy(update={"schema_version": 2}).save(path)
    with pytest.raises(ValueError, match="schema version 2"):
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
