"""Searches that are killed and go on to the very same result."""

import time
from pathlib import Path

import pytest

from nfsearch.report.result import RunResult
from nfsearch.search.study import load_store
from tests.nfsearch.runs import FILES, journal_trials, kill_group, nfsearch, start


def outcomes(folder: Path) -> list[tuple]:
    result = RunResult.load(folder / "result.json")
    return [(c.digest, c.origin, tuple(c.parents), c.loss, c.latency["tpot"].seconds) for c in result.candidates]


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
