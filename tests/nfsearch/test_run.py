"""Whole searches through the command line: the same twice, killed and resumed, interrupted, exported."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from nfsearch.export import load_architecture
from nfsearch.result import RunResult
from nfsearch.search.study import load_store
from nfsearch.space import SpaceSettings
from tests.nfsearch.runs import SPACE, kill_group, nfsearch, start

Command = Callable[..., tuple[str, str]]

FILES = (
    "config.yaml",
    "study.journal",
    "result.json",
    "candidates.csv",
    "front.csv",
    "front.png",
    "report.html",
    "log.txt",
)


def journal_trials(folder: Path) -> int:
    """Candidates finished so far, read while the run goes on."""
    journal = folder / "study.journal"
    return journal.read_text().count('"op_code":4') if journal.exists() else 0


def outcomes(folder: Path) -> list[tuple]:
    result = RunResult.load(folder / "result.json")
    return [(c.digest, c.origin, tuple(c.parents), c.loss, c.latency["tpot"].seconds) for c in result.candidates]


def test_a_finished_run_has_every_file_and_a_true_front(finished_run: Path) -> None:
    for name in FILES[:-1]:
        assert (finished_run / name).stat().st_size > 0, name
    result = RunResult.load(finished_run / "result.json")
    assert result.run.status == "complete"
    assert len(result.candidates) == 8
    assert len({candidate.digest for candidate in result.candidates}) == 8
    space = SpaceSettings(**SPACE).build(vocab=257)
    for candidate in result.candidates:
        assert candidate.state == "done"
        assert space.locate_layers(load(candidate.architecture).layers) is not None
        better = [
            other.number
            for other in result.candidates
            if other.values["loss"] <= candidate.values["loss"]
            and other.values["tpot"] <= candidate.values["tpot"]
            and other.values != candidate.values
        ]
        assert (candidate.number in result.front) == (not better)
    frame = pd.read_csv(finished_run / "candidates.csv")
    assert list(frame.loc[frame.front, "number"].sort_values()) == sorted(result.front)
    assert list(pd.read_csv(finished_run / "front.csv").number) == result.front


def load(fields: dict):  # type: ignore[no-untyped-def]
    from nfsearch.space import Architecture

    return Architecture.from_dict(fields)


@pytest.mark.slow
def test_killed_twice_and_resumed_to_the_very_same_search(finished_run: Path, tmp_path: Path) -> None:
    config = finished_run.parent / "config.yaml"
    folder, finished = tmp_path / "run", []
    for kill in range(2):  # of the new run, and of the resumed one
        process = start("run", config, "--out", folder, *(["--resume"] if kill else []), cwd=tmp_path)
        deadline = time.monotonic() + 90
        while journal_trials(folder) < 3 * kill + 1 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        kill_group(process)
        finished.append(
            [candidate.proposal.architecture.digest for candidate in load_store(folder / "study.journal").candidates()]
        )
    nfsearch("run", config, "--out", folder, "--resume", cwd=tmp_path)
    last = [candidate.proposal.architecture.digest for candidate in load_store(folder / "study.journal").candidates()]
    for before in finished:
        assert last[: len(before)] == before  # kept as they were, none trained again
    assert len(last) == len(set(last)) == 8
    assert outcomes(folder) == outcomes(finished_run)
    for name in FILES:
        assert (folder / name).exists()


@pytest.mark.slow
def test_interrupted_with_two_workers_then_resumed(finished_run: Path, tmp_path: Path) -> None:
    arguments = ("run", finished_run.parent / "config.yaml", "--out", "run")
    process = start(*arguments, "--set", "workers.count=2", cwd=tmp_path)
    while journal_trials(tmp_path / "run") < 2 and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "--resume" in err
    result = RunResult.load(tmp_path / "run" / "result.json")
    assert result.run.status == "interrupted"
    assert 2 <= len(result.candidates) < 8
    assert (tmp_path / "run" / "report.html").exists()
    # More candidates than at first, and another number of workers, are allowed.
    nfsearch(*arguments, "--resume", "--set", "search.evaluations=9", cwd=tmp_path)
    last = RunResult.load(tmp_path / "run" / "result.json")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["search"]["evaluations"] == 9
    assert [candidate.state for candidate in last.candidates] == ["done"] * 9
    assert len({candidate.digest for candidate in last.candidates}) == 9
    assert [c.digest for c in last.candidates[: len(result.candidates)]] == [c.digest for c in result.candidates]


def test_a_report_is_rebuilt_from_the_study(finished_run: Path, tmp_path: Path, command: Command) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "result.json").read_text())
    for name in ("result.json", "candidates.csv", "front.csv", "front.png", "report.html"):
        (tmp_path / "run" / name).unlink()
    assert "report.html" in command("report", "run")[0]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == before


def test_exports_load_again(finished_run: Path, tmp_path: Path, command: Command) -> None:
    result = RunResult.load(finished_run / "result.json")
    best = min(result.candidates, key=lambda candidate: candidate.loss)
    command("export", finished_run, "--to", "yaml", "-o", "best.yaml")
    assert load_architecture(tmp_path / "best.yaml").digest == best.digest
    assert yaml.safe_load((tmp_path / "best.yaml").read_text())["training"]["learning_rate"]["peak"] == 1e-3
    slow = max(candidate.latency["tpot"].seconds for candidate in result.candidates)
    fast = min(result.candidates, key=lambda candidate: candidate.latency["tpot"].seconds)
    limit = fast.latency["tpot"].seconds * 1e3 * 1.0001
    assert limit < slow * 1e3
    command("export", finished_run, "--to", "yaml", "-o", "fast.yaml", "--max-latency-ms", limit)
    assert load_architecture(tmp_path / "fast.yaml").digest == fast.digest


def test_an_hf_export_is_the_model_that_the_search_trained(finished_run: Path, command: Command) -> None:
    err = command("export", finished_run, "--best", "--to", "hf", "-o", "model")[1]
    trained, searched = err.split("loss ")[1].split(", in the search ")
    assert trained == searched.split()[0]
    model = AutoModelForCausalLM.from_pretrained("model").eval()
    ids = AutoTokenizer.from_pretrained("model")("import os", return_tensors="pt").input_ids
    assert ids.tolist() == [list(b"import os")]
    cached, plain = (model.generate(ids, max_new_tokens=12, do_sample=False, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)
    assert cached.shape[1] == ids.shape[1] + 12
