"""Runs that cannot be read, resumed, exported or written: one clear message, no traceback, nothing half written."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from nfsearch.cli.main import main
from nfsearch.latency_lut import LatencyTable
from nfsearch.report.result import RunResult
from nfsearch.run import plan
from nfsearch.run.config import Config, load_config
from nfsearch.run.tables import proxy_of
from nfsearch.search.study import load_store
from tests.nfsearch.runs import Run, files_of_at_most, tiny_config


@pytest.mark.parametrize("room", [0, 12_000])
def test_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], room: int
) -> None:
    """At the start, and in the middle of the search."""
    config = tiny_config(tmp_path)
    proxy_of(load_config(config)[0])  # so that the run's folder is where the disk is full
    monkeypatch.setattr(sys, "argv", ["nfsearch", "run", str(config), "--out", str(tmp_path / "run")])
    with files_of_at_most(room), pytest.raises(SystemExit) as end:
        main()
    err = capsys.readouterr().err
    assert end.value.code == 1
    assert "Traceback" not in err
    assert "Logging error" not in err
    assert err.count("nfsearch: ") == 1
    assert "File too large" in err
    assert (tmp_path / "run").exists() == (room > 0)
    if room:
        finished = len(load_store(tmp_path / "run" / "study.journal").candidates())
        assert 0 < finished < 8
        if (tmp_path / "run" / "result.json").exists():  # for which there may be room
            assert len(RunResult.load(tmp_path / "run" / "result.json").candidates) == finished


def test_reports_and_exports_of_what_is_no_run(fails: Run, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert "is not the folder of a run" in fails("report", "other")
    assert "is not the folder of a run" in fails("export", "nothing", "--to", "yaml", "-o", "x.yaml")
    assert "exclude each other" in fails("export", "other", "--to", "yaml", "-o", "x.yaml", "--best", "--pick", "1")


def test_journal_cut_in_the_middle(fails: Run, finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    journal = folder / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    lines[4] = lines[4][: len(lines[4]) // 2] + "\n"
    journal.write_text("".join(lines))
    assert "study.journal" in (err := fails("report", "run"))
    assert "line 5" in err
    assert "line 5" in fails("run", "--resume", "run")


@pytest.mark.parametrize("format", [None, 1, 5])
def test_a_run_of_another_format(fails: Run, finished_run: Path, tmp_path: Path, format: int | None) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    journal = folder / "study.journal"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    (stated,) = (record for record in records if "format" in record.get("user_attr", {}))
    stated["user_attr"] = {"format": format} if format else {"unknown": 1}
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    for command in (("report", "run"), ("run", "--resume", "run")):
        err = fails(*command)
        assert (
            f"study.journal holds a run of another version of nfsearch (format {format or 1}, this one reads 4)" in err
        )
        assert "search anew (--out)" in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("sources", 0.5, "sources"),
        ("sources", [1], "sources.0"),
        ("sources", [{"name": "a"}], "sources.0.tokens"),
        ("config", {"text": ""}, "config.resolved"),
        ("space", "all", "space"),
        ("space", {"notation": 3, "widths": [32]}, "space.notation"),
        ("objectives", [["loss"]], "objectives.0"),
        ("table", {"path": "t.parquet"}, "table.rows"),
    ],
)
def test_what_a_journal_keeps_of_the_run_is_damaged(
    fails: Run, finished_run: Path, tmp_path: Path, key: str, value: object, place: str
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    journal = tmp_path / "run" / "study.journal"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    (kept,) = (record["system_attr"] for record in records if f"nfsearch:{key}" in record.get("system_attr", {}))
    kept[f"nfsearch:{key}"] = value
    journal.write_text("".join(json.dumps(record) + "\n" for record in records))
    err = fails("report", "run")
    assert f"is no run: {place}: " in err
    assert len(err.splitlines()) == 1


def test_resuming_with_another_config(fails: Run, finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    changes = ("--set", "search.seed=5", "--set", "proxy.tokens=4096", "--set", "search.evaluations=9")
    err = fails("run", "--resume", "run", *changes)
    assert "proxy.tokens was 2048 and is now 4096; search.seed was 0 and is now 5)" in err
    assert "leave CONFIG and --out out" in fails("run", "run/config.yaml", "--resume", "run")
    assert "leave CONFIG and --out out" in fails("run", "--out", "run", "--resume", "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["search"]["seed"] = 5
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert "search.seed was 0 and is now 5" in fails("run", "--resume", "run")


def test_resuming_with_another_table(
    fails: Run, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    given = plan.given_table

    def another(config: Config) -> LatencyTable:
        table = given(config)
        assert table is not None
        table.provenance = dataclasses.replace(table.provenance, date="2001-01-01")
        return table

    monkeypatch.setattr(plan, "given_table", another)
    assert "(table was " in (err := fails("run", "--resume", "run", "--set", "search.evaluations=9"))
    assert "2001-01-01" in err


def test_exporting_a_candidate_that_is_not_there(fails: Run, finished_run: Path, tmp_path: Path) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    assert "unknown exporter 'yml', did you mean yaml?" in fails("export", "run", "--to", "yml", "-o", "x.yaml")
    assert "no candidate 99" in fails("export", "run", "--to", "yaml", "-o", "x.yaml", "--pick", "99")
    assert "ms" in fails("export", "run", "--to", "yaml", "-o", "x.yaml", "--max-latency-ms", "1e-9")


def test_exporting_after_the_data_changed(
    fails: Run, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nfsearch.proxies import training

    shutil.copytree(finished_run, tmp_path / "run")
    prepare = training.prepare
    monkeypatch.setattr(training, "prepare", lambda settings: dataclasses.replace(prepare(settings), digest="other"))
    assert "has changed since the search" in fails("export", "run", "--to", "hf", "-o", "model")
