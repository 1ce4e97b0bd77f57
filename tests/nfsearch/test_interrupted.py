"""A search that is interrupted (Ctrl-C) leaves its report, and can be gone on with."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nfsearch.report.result import RunResult
from tests.fla_stand_in import FOLDER, stand_in
from tests.nfsearch.runs import RAY, invented_table, journal_trials, start, tiny_config

SPACE = {
    "width": [32, 64],
    "where": {"mixer": "D[head_dim=16] | A[head_dim=16]"},
    "layers": "fla:GatedMemory[num_heads=2,expand_v=1|2] (mixer F[ratio=2]{0..1}){1..2}",
}


@pytest.mark.slow
def test_interrupted_with_two_workers_then_resumed(
    tmp_path: Path, command: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every candidate has a layer of flash-linear-attention's stand-in, which the workers have to find too."""
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path / "cache"))
    with stand_in():
        table = str(invented_table(tmp_path / "layers.parquet", SPACE))
        arguments = ("run", tiny_config(tmp_path, space=SPACE, latency={"table": table}), "--out", "run")
        _interrupt_and_resume(tmp_path, command, *arguments)


def _interrupt_and_resume(tmp_path: Path, command: Callable[..., tuple[str, str]], *arguments: str | Path) -> None:
    process = start(*arguments, *RAY, "--set", "workers.count=2", cwd=tmp_path)
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
    # More candidates than at first, and other workers, are allowed.
    command(*arguments, "--resume", "--set", "search.evaluations=9")
    last = RunResult.load(tmp_path / "run" / "result.json")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["search"]["evaluations"] == 9
    assert [candidate.state for candidate in last.candidates] == ["done"] * 9
    assert len({candidate.digest for candidate in last.candidates}) == 9
    assert [c.digest for c in last.candidates[: len(result.candidates)]] == [c.digest for c in result.candidates]
