"""Searches that are killed and go on to the very same result."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nfsearch.report.result import RunResult
from nfsearch.search.study import load_store
from tests.nfsearch.runs import FILES, RAY, journal_trials, kill_group, start


def outcomes(folder: Path) -> list[tuple]:
    result = RunResult.load(folder / "result.json")
    return [(c.job, c.origin, tuple(c.parents), c.metrics["loss"], c.metrics["tpot"]) for c in result.candidates]


@pytest.mark.slow
def test_killed_twice_and_resumed_to_the_very_same_search(
    finished_run: Path, tmp_path: Path, command: Callable[..., tuple[str, str]], one_thread: None
) -> None:
    """First with a worker process, whose end is not ours to see, then in one process; who evaluates changes nothing."""
    config = finished_run.parent / "config.yaml"
    folder, finished = tmp_path / "run", []
    for kill, arguments in enumerate((RAY, ("--resume",))):
        process = start("run", config, "--out", folder, *arguments, cwd=tmp_path)
        deadline = time.monotonic() + 90
        while journal_trials(folder) < 3 * kill + 1 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        kill_group(process)
        finished.append(
            [candidate.proposal.job.digest for candidate in load_store(folder / "study.journal").candidates()]
        )
        assert len(finished[-1]) > 3 * kill
    command("run", config, "--out", folder, "--resume")
    last = [candidate.proposal.job.digest for candidate in load_store(folder / "study.journal").candidates()]
    for before in finished:
        assert last[: len(before)] == before  # kept as they were, none trained again
    assert len(last) == len(set(last)) == 8
    assert outcomes(folder) == outcomes(finished_run)
    for name in FILES:
        assert (folder / name).exists()
