"""A whole search through the command line: its files, its report made again, its exports."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nfsearch.export import load_architecture
from nfsearch.ops.model import HybridLM
from nfsearch.report.result import RunResult
from nfsearch.run import search
from nfsearch.run.config import load_config
from nfsearch.run.records import config_text
from nfsearch.space import Architecture, SpaceSettings
from tests.nfsearch.runs import FILES, SPACE, tiny_config

Command = Callable[..., tuple[str, str]]


def test_a_finished_run_has_every_file_and_a_true_front(finished_run: Path) -> None:
    for name in FILES[:-1]:
        assert (finished_run / name).stat().st_size > 0, name
    result = RunResult.load(finished_run / "result.json")
    assert result.run.status == "complete"
    assert result.objectives == ["sized_loss", "tpot"]
    assert len(result.candidates) == 8
    assert len({candidate.digest for candidate in result.candidates}) == 8
    space = SpaceSettings(**SPACE).build(vocab=257)
    for candidate in result.candidates:
        assert candidate.state == "done"
        assert space.locate_layers(Architecture.from_dict(candidate.architecture).layers) is not None
        better = [
            other.number
            for other in result.candidates
            if all(other.value(name) <= candidate.value(name) for name in result.objectives)
            and any(other.value(name) < candidate.value(name) for name in result.objectives)
        ]
        assert (candidate.number in result.front) == (not better)
    frame = pd.read_csv(finished_run / "candidates.csv")
    assert list(frame.loc[frame.front, "number"].sort_values()) == sorted(result.front)
    assert list(pd.read_csv(finished_run / "front.csv").number) == result.front


def test_a_search_in_which_all_failed_has_failed(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = HybridLM.loss
    monkeypatch.setattr(HybridLM, "loss", lambda *given, **rest: loss(*given, **rest) * math.nan)
    config = tiny_config(tmp_path, search={"evaluations": 2, "population": 2})
    _, err = command("run", config, "--out", "run", status=1)
    assert "all 2 candidates failed, the first with: the training loss is nan" in err
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_failure_after_the_search_leaves_a_report(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(search, "time_front", fails)
    _, err = command("run", tiny_config(tmp_path, search={"evaluations": 2, "population": 2}), "--out", "run", status=1)
    assert "unspecified launch failure" in err
    assert (tmp_path / "run" / "report.html").is_file()
    result = RunResult.load(tmp_path / "run" / "result.json")
    assert (result.run.status, len(result.in_state("done"))) == ("failed-to-finish", 2)


def test_a_report_is_rebuilt_from_the_study(finished_run: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "result.json").read_text())
    for name in ("result.json", "candidates.csv", "front.csv", "front.png", "report.html"):
        (tmp_path / "run" / name).unlink()
    assert "report.html" in command("report", "run")[0]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == before


def test_exports_load_again(finished_run: Path, tmp_path: Path, command: Command) -> None:
    result = RunResult.load(finished_run / "result.json")
    best = min(result.candidates, key=lambda candidate: candidate.metrics["sized_loss"].value)
    command("export", finished_run, "--to", "yaml", "-o", "best.yaml")
    assert load_architecture(tmp_path / "best.yaml").digest == best.digest
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["training"]["learning_rate"]["peak"] == 1e-3
    fast, *_, slow = sorted(result.candidates, key=lambda candidate: candidate.metrics["tpot"].value)
    limit = fast.metrics["tpot"].value * 1e3 * 1.0001
    assert limit < slow.metrics["tpot"].value * 1e3
    command("export", finished_run, "--to", "yaml", "-o", "fast.yaml", "--max-latency-ms", limit)
    assert load_architecture(tmp_path / "fast.yaml").digest == fast.digest


def test_losses_along_a_run_are_intermediate_values_of_its_study(finished_run: Path) -> None:
    result = RunResult.load(finished_run / "result.json")
    storage = JournalStorage(JournalFileBackend(str(finished_run / "study.journal")))
    for trial in optuna.load_study(study_name=None, storage=storage).trials:
        curve = result.candidate(trial.number).curve
        assert len(curve) == 8  # steps, each of which is reported in a run as short as this
        assert list(trial.intermediate_values.items()) == curve


def test_a_limit_that_only_training_tells_keeps_candidates_off_the_front(
    finished_run: Path, tmp_path: Path, command: Command
) -> None:
    before = RunResult.load(finished_run / "result.json")
    losses = sorted(record.metrics["loss"].value for record in before.candidates[:4])
    most = (losses[0] + losses[1]) / 2
    command("run", tiny_config(tmp_path, limits={"loss": most}, search={"evaluations": 4}), "--out", "run")
    result = RunResult.load(tmp_path / "run" / "result.json")
    assert result.limits == {"loss": most}
    assert [record.digest for record in result.candidates] == [record.digest for record in before.candidates[:4]]
    (best,) = result.front
    assert result.candidate(best).value("loss") == losses[0]
    frame = pd.read_csv(tmp_path / "run" / "candidates.csv")
    assert list(frame.loc[frame.front, "number"]) == [best]
    command("export", "run", "--to", "yaml", "-o", "best.yaml", "--max-latency-ms", 1e9)
    assert load_architecture(tmp_path / "best.yaml").digest == result.candidate(best).digest


def test_known_designs_over_the_budget_are_told_once(tmp_path: Path, command: Command) -> None:
    large = "A[head_dim=16] F[ratio=2] A[head_dim=16] F[ratio=2]"
    search = {"evaluations": 2, "population": 2, "seeds_known": [large, "A[head_dim=16]"]}
    out, err = command("run", tiny_config(tmp_path, limits={"tpot_ms": 1.5}, search=search), "--out", "run")
    told = "known design (A[head_dim=16] F[ratio=2]){2} @ 32 is over the limits and left out (tpot: "
    assert err.count(told) == 1
    assert told not in out
    assert (tmp_path / "run" / "log.txt").read_text().count(told) == 1
    first, second = RunResult.load(tmp_path / "run" / "result.json").candidates
    assert (first.origin, first.notation, second.origin) == ("known", "A[head_dim=16]", "random")


@pytest.mark.parametrize("late", [False, True], ids=["before it begins", "while it begins"])
def test_a_run_leaves_alone_what_another_began_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    folder = tmp_path / "run"
    name = "create_study" if late else "run_meta"
    honest = getattr(search, name)

    def meanwhile(*given: Any, **named: Any) -> Any:
        folder.mkdir()
        (folder / "study.journal").write_text("another's")
        return honest(*given, **named)

    monkeypatch.setattr(search, name, meanwhile)
    with pytest.raises(ValueError, match=r"another run has begun in .*run meanwhile: start this one again"):
        search.search(tiny_config(tmp_path), folder)
    assert [(each.name, each.read_text()) for each in folder.iterdir()] == [("study.journal", "another's")]


def test_a_value_of_several_lines_leaves_a_config_that_can_be_read(tmp_path: Path) -> None:
    assignment = 'search.seeds_known=["A[head_dim=16]",\n "D[head_dim=16]"]'
    config, file = load_config(tiny_config(tmp_path), [assignment])
    (tmp_path / "kept.yaml").write_text(config_text(file, tmp_path / "config.yaml", [assignment]))
    assert load_config(tmp_path / "kept.yaml")[0].search.seeds_known == config.search.seeds_known
