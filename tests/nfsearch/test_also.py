"""Several proxies in one run: what a config says of them, and a search with loss and recall on one front."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nfsearch.proxies import Job, Keeps, Reads, Trains
from nfsearch.proxies.combined import Combined, CombinedTraining
from nfsearch.report.result import RunResult
from nfsearch.run.config import load_config
from nfsearch.run.tables import proxy_of
from nfsearch.space import Architecture
from tests.nfsearch.runs import complaint, tiny_config

Command = Callable[..., tuple[str, str]]
TASK = {"pairs": 2, "sequence": 8, "symbols": 8, "examples": 64, "batch": 8, "test": 16}
SPACE = "space: {width: 64, layers: 'D[head_dim=32]'}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("also: [mqar]\n", "also: expected keys and values"),
        ("also: {mqra: {}}\n", "also.mqra: unknown proxy 'mqra', did you mean mqar?"),
        ("also: {mqar: {pears: 3}}\n", "also.mqar.pears: unknown key, did you mean pairs?"),
        ("also: {mqar: {pairs: many}}\n", "also.mqar.pairs: expected a whole number, found 'many'"),
        ("also: {mqar: {pairs: 100}}\n", "also.mqar: 100 pairs and the questions for them take 300 tokens, found 256"),
        ("also: {training: {}}\n", "also.training: is the kind of `proxy` already"),
        ("also: {mqar: {kind: training}}\n", "also.mqar.kind: expected 'mqar', found 'training'"),
        ("objectives: [loss, mqar]\n", "objectives.1: 'mqar' is none of sized_loss, loss, bits_per_byte"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    assert complaint(tmp_path / "c.yaml", SPACE + text).startswith(f"{tmp_path / 'c.yaml'}:2: {said}")


def test_settings_are_assigned_by_kind(tmp_path: Path) -> None:
    path = tiny_config(tmp_path)
    config, _ = load_config(path, ["also.mqar.pairs=8", "also.zero-cost={}", "objectives=[loss, mqar, depth]"])
    assert config.others["mqar"].model_dump()["pairs"] == 8
    assert list(config.others) == ["mqar", "zero-cost"]
    assert config.others["zero-cost"].kind == "zero-cost"
    assert {"loss", "mqar", "gradient_norm", "tpot"} <= set(config.metrics)
    assert load_config(path)[0].objective_names == ("sized_loss", "tpot")
    with pytest.raises(ValueError, match=r"--set also\.mqar\.pairs=0: also\.mqar\.pairs: expected greater than 0"):
        load_config(path, ["also.mqar.pairs=0"])


def test_a_relative_path_of_another_proxy_means_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some text\n")
    config = tiny_config(tmp_path, proxy=None, also={"training": {"data": "text.txt"}})
    config.write_text(config.read_text().replace("proxy: null", "proxy: {kind: mqar}"))
    found, file = load_config(config)
    assert found.others["training"].model_dump()["data"] == str(tmp_path / "text.txt")
    assert file.values["also"]["training"]["data"] == str(tmp_path / "text.txt")


def test_the_parts_of_a_combined_proxy(tmp_path: Path) -> None:
    path = tiny_config(tmp_path)
    alone = proxy_of(load_config(path)[0])
    both = proxy_of(load_config(path, [f"also.mqar={TASK}", "also.zero-cost={sequence: 8, batch: 1}"])[0])
    assert isinstance(both, Trains)
    assert isinstance(both, Keeps)
    assert isinstance(both, Reads)
    assert isinstance(both, CombinedTraining)
    assert both.sources == alone.sources  # type: ignore[attr-defined]
    assert both.vocab == alone.vocab
    assert both.fidelity != alone.fidelity
    assert both.fidelity.data == alone.fidelity.data
    harder = proxy_of(load_config(path, [f"also.mqar={ {**TASK, 'pairs': 1} }"])[0])
    assert harder.fidelity != both.fidelity
    job = Job(Architecture.parse("A[head_dim=16]", width=32, vocab=257), both.fidelity, 2)
    assert both.main_job(job) == Job(job.architecture, alone.fidelity, 2)
    with pytest.raises(ValueError, match="these settings cannot train at"):
        both.main_job(Job(job.architecture, harder.fidelity))
    reported: list[int] = []
    found = both.evaluate(job, lambda tokens, _: reported.append(tokens))
    by_itself = alone.evaluate(Job(job.architecture, alone.fidelity, 2), lambda *_: None)
    assert list(found.metrics) == [metric.name for metric in both.metrics]
    assert found.metrics["loss"] == by_itself.metrics["loss"]
    assert (found.curve, found.tokens) == (by_itself.curve, by_itself.tokens)
    assert sorted(set(reported)) == [tokens for tokens, _ in found.curve]
    assert reported.count(found.tokens) > 1  # by the task, which is at work after the training

    class Enough(BaseException):
        pass

    def end(tokens: int, loss: float) -> None:
        """Raises within the task: at the first report that is none of the training's."""
        if seen and tokens == seen[-1]:
            raise Enough
        seen.append(tokens)

    seen: list[int] = []
    with pytest.raises(Enough):
        both.evaluate(job, end)
    assert seen == [tokens for tokens, _ in found.curve]
    task = proxy_of(load_config(path, ["proxy={kind: mqar}", "also.zero-cost={}"])[0])
    assert isinstance(task, Combined)
    assert not isinstance(task, Trains)


def test_a_search_for_loss_and_recall(tmp_path: Path, command: Command, one_thread: None) -> None:
    config = tiny_config(tmp_path, search={"evaluations": 3, "population": 2}, also={"mqar": TASK})
    command("run", config, "--out", "run", "--set", "objectives=[loss, mqar]", "--set", "search.seed=1")
    result = RunResult.load(tmp_path / "run/result.json")
    assert result.objectives == ["loss", "mqar"]
    assert all(0 <= each.value("mqar") <= 1 and each.metrics["mqar"].error > 0 for each in result.candidates)
    assert "mqar" in (tmp_path / "run/candidates.csv").read_text().splitlines()[0]
    command("run", "--resume", "run", "--set", "search.evaluations=4")
    result = RunResult.load(tmp_path / "run/result.json")
    assert [each.state for each in result.candidates] == ["done"] * 4
    _, err = command("run", "--resume", "run", "--set", "also.mqar.pairs=1", status=2)
    assert "also" in err
    pick = result.front[0]
    _, err = command("export", "run", "--pick", pick, "--to", "yaml", "-o", "winner.yaml")
    fields = yaml.safe_load((tmp_path / "winner.yaml").read_text())
    assert fields["measured"]["metrics"]["mqar"]["value"] == result.candidate(pick).value("mqar")
    command("export", "run", "--pick", pick, "--to", "hf", "-o", "winner")
    assert (tmp_path / "winner/model.safetensors").is_file()
    command("confirm", "run", "--top", 1, "--seeds", 1)
    assert RunResult.load(tmp_path / "run/result.json").confirmed
