"""A search that is interrupted (Ctrl-C) leaves its report, and can be gone on with."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nfsearch.report.result import RunResult
from tests.nfsearch.runs import RAY, journal_trials, start, tiny_config


@pytest.mark.slow
def test_interrupted_with_two_workers_then_resumed(tmp_path: Path, command: Callable[..., tuple[str, str]]) -> None:
    arguments = ("run", tiny_config(tmp_path), "--out", "run")
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
