"""A study of tasks: models by tasks, what is kept, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfsearch.proxies.copying import CompressionProxy
from nfsearch.proxies.trainer import Diverged
from nfsearch.studies.tasks import load_tasks

Command = Callable[..., tuple[str, str]]
EXPERIMENT = Path(__file__).parents[3] / "experiments/recall/tasks.yaml"
TINY: dict[str, Any] = {
    "width": 32,
    "models": {"Mamba2": "M2[head_dim=16,state=16]", "none": "F[ratio=2]"},
    "tasks": {
        "recall of 2": {
            "kind": "mqar",
            "pairs": 2,
            "sequence": 8,
            "symbols": 8,
            "examples": 64,
            "batch": 8,
            "test": 16,
        },
        "sum": {"kind": "compression", "sequence": 4, "examples": 64, "batch": 8, "test": 16},
    },
    "device": "cpu",
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "tasks.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}, sort_keys=False))
    return path


def test_a_study_gives_a_table_and_goes_on(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    config = written(tmp_path)
    out, _ = command("study", "tasks", config, "-o", "out")
    results = (tmp_path / "out/results.csv").read_text()
    assert len(results.splitlines()) == 1 + 4
    assert out.strip() == (tmp_path / "out/table.md").read_text().strip()
    assert out.count("| Mamba2 |") == out.count("| none |") == 1
    assert out.count(" ± ") == 1 + 4
    assert (tmp_path / "out/figure.png").read_bytes().startswith(b"\x89PNG")

    evaluated: list[int] = []
    evaluate = CompressionProxy.evaluate
    monkeypatch.setattr(CompressionProxy, "evaluate", lambda *given: evaluated.append(1) or evaluate(*given))
    command("study", "tasks", config, "-o", "out")
    assert not evaluated
    assert (tmp_path / "out/results.csv").read_text() == results
    command("study", "tasks", config, "-o", "out", "--set", "tasks.sum.examples=32")
    assert len(evaluated) == 2
    assert (tmp_path / "out/results.csv").read_text().startswith(results)


def test_a_task_may_have_any_name(tmp_path: Path) -> None:
    names = ["copy", "_copy", "model_config", "recall of 4"]
    path = written(tmp_path, tasks={name: {"kind": "compression", "sequence": 8} for name in names})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(load_tasks(path)[0].proxies) == names


def test_what_failed_is_told_and_the_rest_is_kept(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*given: Any) -> None:
        raise Diverged("the loss is nan")

    monkeypatch.setattr(CompressionProxy, "evaluate", diverge)
    _, err = command("study", "tasks", written(tmp_path), "-o", "out", status=1)
    assert "2 of 4 failed, the first: Mamba2 by sum: the loss is nan" in err
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 1 + 2
    assert (tmp_path / "out/table.md").read_text().count("failed") == 2


def test_an_interrupt_keeps_what_finished(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CompressionProxy, "evaluate", interrupt)
    _, err = command("study", "tasks", written(tmp_path), "-o", "out", status=130)
    assert "the same command goes on: nfsearch study tasks" in err
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 1 + 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tasks": {}}, "tasks: expected tasks by name"),
        (
            {"tasks": {"a": {"pairs": 4}}},
            "tasks.a: expected a kind: compression, in_context_recall, mqar, selective_copying",
        ),
        ({"tasks": {"a": {"kind": "zero-cost"}}}, "tasks.a: expected a kind: compression,"),
        ({"tasks": {"a": {"kind": "in_context_recall", "sequence": 3}}}, "tasks.a.sequence: expected greater than 3"),
        ({"tasks": {"a": {"kind": "mqra"}}}, "tasks.a.kind: unknown proxy 'mqra', did you mean mqar?"),
        ({"tasks": {"a": {"kind": "mqar", "pears": 4}}}, "tasks.a.pears: unknown key, did you mean pairs?"),
        ({"models": {"x": "A[head_dim=33]"}}, "models.x: A[head_dim=33]: width 32 is not a multiple"),
        ({"models": {"x": "Z"}}, "models.x: column 1: 'Z' is neither an op"),
        ({"seeds": 0}, "seeds: expected greater than 0, found 0"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011  (the text is compared)
        load_tasks(written(tmp_path, **changes))
    assert said in str(error.value)
    assert str(error.value).startswith(f"{tmp_path / 'tasks.yaml'}:")


def test_a_model_that_a_task_cannot_narrow_is_named_before_anything_is_written(
    tmp_path: Path, command: Command
) -> None:
    tasks = {"a": {"kind": "compression", "narrow": 7}}
    err = command("study", "tasks", written(tmp_path, tasks=tasks), "-o", "out", status=2)[1]
    assert "tasks.a.narrow: " in err
    assert "is not a multiple of 7" in err
    assert not (tmp_path / "out").exists()


def test_another_folder_is_not_written_to(tmp_path: Path, command: Command) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    assert "holds no study of tasks" in command("study", "tasks", written(tmp_path), "-o", "out", status=2)[1]
    (tmp_path / "out/results.csv").write_text("a,b\n1,2\n")
    assert (
        "results.csv:2: no result of a study"
        in command("study", "tasks", tmp_path / "tasks.yaml", "-o", "out", status=2)[1]
    )


def test_the_experiment_is_valid_and_has_every_mixer() -> None:
    settings, _ = load_tasks(EXPERIMENT)
    assert [each.model_dump().get("pairs") for each in settings.proxies.values()][:4] == [64, 128, 256, 512]
    used = {layer.op for name in settings.models for layer in settings.architecture(name, 16).layers}
    assert used == {"A", "D", "GDN", "GLA", "M2", "F"}
