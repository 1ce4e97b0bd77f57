"""What a run tells of candidates that went another way: stopped by a rule, or trained with something to say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from nfsearch.proxies import Proxy, TokenSource, trainer
from nfsearch.run.sources import tell_sources
from nfsearch.support.notes import note
from tests.nfsearch.runs import tiny_config

SAID = "M2 trains in plain torch: the kernel gave other figures (0.3 off)"


def test_notes_and_stopped_candidates_are_in_every_file(
    tmp_path: Path, command: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = trainer.train_model

    def talking(architecture: Any, *rest: Any, **how: Any) -> Any:
        if "M2" in architecture.notation:
            note(SAID)
        return train(architecture, *rest, **how)

    monkeypatch.setattr(trainer, "train_model", talking)
    rule = {"kind": "median", "least": 2, "share": 0.5}
    (tmp_path / "few.txt").write_text("".join(f"line {number} of few\n" for number in range(8000)))
    mixture = [{"path": "python-stdlib", "weight": 3}, {"path": str(tmp_path / "few.txt")}]
    config = tiny_config(tmp_path, rule=rule, search={"evaluations": 6}, proxy={"data": mixture})
    _, err = command("run", config, "--out", "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    records = result["candidates"]
    done, stopped = ([r["number"] for r in records if r["state"] == state] for state in ("done", "stopped"))
    assert len(done) + len(stopped) == 6
    assert done
    assert stopped
    said = [r["number"] for r in records if r["notes"] == [SAID]]
    assert said == [r["number"] for r in records if r["number"] in done and "M2" in r["mixers"]]
    assert said
    for record in (records[number] for number in stopped):
        assert set(record["metrics"]) == {"tpot", "memory", "parameters", "state"}
        assert 1024 <= record["tokens"] == record["curve"][-1][0] < 2048
        assert record["error"] is None

    frame = pd.read_csv(tmp_path / "run" / "candidates.csv").set_index("number")
    assert list(frame.index[frame.state == "stopped"]) == stopped
    assert not frame.front[stopped].any()
    assert list(frame.index[frame.notes == SAID]) == said
    page = (tmp_path / "run" / "report.html").read_text()
    assert SAID in page
    assert all(f'<a href="#c{number}">#{number}</a>' in page for number in said)
    assert f"{len(stopped)} stopped early" in page
    assert f"Beware, of {len(said)} of 6 candidates: {SAID}" in err
    assert SAID in (tmp_path / "run" / "log.txt").read_text()
    stdlib, few = result["sources"]
    assert few["name"] == str(tmp_path / "few.txt")
    assert (few["share"], few["tokens"]) == pytest.approx((0.25, stdlib["tokens"] / 3))
    assert few["different"] < 160_000 < few["tokens"]
    assert f"(75.0%), {few['name']} {few['tokens']:,} (25.0%)" in err
    assert f"{few['tokens']:,} of {few['name']} (25.0 %)" in page

    storage = JournalStorage(JournalFileBackend(str(tmp_path / "run" / "study.journal")))
    trials = optuna.load_study(study_name=None, storage=storage).trials
    assert [trial.number for trial in trials if trial.state == optuna.trial.TrialState.PRUNED] == stopped
    assert all([*map(list, trial.intermediate_values.items())] == records[trial.number]["curve"] for trial in trials)


def test_a_source_that_is_seen_many_times_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Reader:
        sources = (TokenSource("wiki", 3000, 0.75, 3000, 0.9), TokenSource("few.txt", 1000, 0.25, 400, 2.25))

    tell_sources(cast(Proxy, Reader()))
    assert capsys.readouterr().err.splitlines() == [
        "Training tokens: 4,000 of wiki 3,000 (75.0%), few.txt 1,000 (25.0%)",
        "Beware: a candidate sees each of the 400 tokens of few.txt 2.2 times, repeated to keep its share",
    ]
