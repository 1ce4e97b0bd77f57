"""A search that is interrupted leaves its report, and one that is killed what it finished. Both go on to the
very same result."""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from nfsearch.report.result import RunResult
from nfsearch.run import search as run_search
from nfsearch.search.study import load_store
from tests.fla_stand_in import FOLDER, stand_in
from tests.nfsearch.runs import FILES, RAY, invented_table, journal_trials, kill_group, start, tiny_config

SPACE = {
    "width": [32, 64],
    "where": {"mixer": "D[head_dim=16] | A[head_dim=16]"},
    "layers": "fla:GatedMemory[num_heads=2,expand_v=1|2] (mixer F[ratio=2]{0..1}){1..2}",
}
FEWER = ("--set", "search.evaluations=9")


def outcomes(folder: Path) -> list[tuple]:
    result = RunResult.load(folder / "result.json")
    return [(c.job, c.origin, tuple(c.parents), c.metrics["loss"], c.metrics["tpot"]) for c in result.candidates]


def finished(folder: Path) -> list[str]:
    return [candidate.proposal.job.digest for candidate in load_store(folder / "study.journal").candidates()]


def wait(process: subprocess.Popen[str], folder: Path, trials: int) -> None:
    deadline = time.monotonic() + 90
    while journal_trials(folder) < trials and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)


@pytest.mark.slow
def test_interrupted_killed_and_resumed_to_the_very_same_search(
    tmp_path: Path, command: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """First in a worker process, then in the search's own, last in this one: who evaluates changes nothing. Every
    candidate has a layer of flash-linear-attention's stand-in, which all of them have to find."""
    monkeypatch.setenv("PYTHONPATH", str(FOLDER))
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run"
    with stand_in():
        table = str(invented_table(tmp_path / "layers.parquet", SPACE))
        config = tiny_config(tmp_path, space=SPACE, latency={"table": table}, search={"evaluations": 10})
        command("run", config, "--out", "whole")

        process = start("run", config, "--out", folder, *FEWER, *RAY, cwd=tmp_path)
        wait(process, folder, 2)
        process.send_signal(signal.SIGTERM)  # Ctrl-C and a closed terminal mean the same
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert "--resume" in err
        result = RunResult.load(folder / "result.json")
        assert result.run.status == "interrupted"
        assert 2 <= len(result.candidates) < 9
        assert (folder / "report.html").exists()
        first = finished(folder)
        assert first == [candidate.job for candidate in result.candidates]

        process = start("run", "--resume", folder, "--set", "workers={executor: local}", cwd=tmp_path)
        wait(process, folder, len(first) + 1)
        kill_group(process)
        second = finished(folder)
        assert len(second) > len(first)
        assert second[: len(first)] == first  # kept as they were, none trained again

        command("run", "--resume", folder, "--set", "search.evaluations=10")  # more than at first are allowed
        last = finished(folder)
        assert last[: len(second)] == second
        assert len(last) == len(set(last)) == 10
        assert yaml.safe_load((folder / "config.yaml").read_text())["search"]["evaluations"] == 10
        result = RunResult.load(folder / "result.json")
        assert {candidate.state for candidate in result.candidates} == {"done"}
        assert "--resume" not in result.run.command  # how it began
        assert outcomes(folder) == outcomes(tmp_path / "whole")
        for name in FILES:
            assert (folder / name).exists()


class Killed(BaseException):
    """Ends a run as nothing does that a run takes in."""


def test_killed_before_its_first_candidate_and_resumed_by_its_folder_alone(
    tmp_path: Path, command: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somewhere else, with a config whose paths were relative, and settings that were assigned."""
    monkeypatch.chdir(tmp_path)
    Path("corpus.txt").write_text("\n\n".join(f"Document {n} tells of {n * n} and of {n + 7}." for n in range(3000)))
    config = tiny_config(tmp_path, proxy={"data": "corpus.txt"})

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(run_search, "_carry_out", killed)
        assigned = ("search.evaluations=3", "search.population=2", "proxy.tokens=1024")
        with pytest.raises(Killed):
            run_search.search(config, Path("run"), assignments=assigned)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    before = (tmp_path / "run" / "config.yaml").read_text()
    _, err = command("run", "--resume", "../run", "--set", "proxy.tokens=2048", "--set", "search.seed=1", status=2)
    assert "(proxy.tokens was 1024 and is now 2048; search.seed was 0 and is now 1)" in err
    command("run", "--resume", "../run")
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    candidates = RunResult.load(tmp_path / "run" / "result.json").candidates
    assert [(each.state, each.fidelity.tokens) for each in candidates] == [("done", 1024)] * 3


def test_two_runs_of_one_name_share_a_database(
    tmp_path: Path, command: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = {"evaluations": 2, "population": 2}
    config = tiny_config(tmp_path, storage="sqlite:///studies.db?timeout=60", search=fewer)
    for folder in ("a/s", "b/s"):
        command("run", config, "--out", folder)
    assert [(tmp_path / folder / "s" / "study.name").read_text() for folder in "ab"] == ["s\n", "s-2\n"]
    command("run", "--resume", "a/s", "--set", "search.evaluations=3")
    (tmp_path / "c").mkdir()
    monkeypatch.chdir(tmp_path / "c")
    for folder, count in (("../a/s", 3), ("../b/s", 2)):
        command("report", folder)
        assert len(RunResult.load(Path(folder) / "result.json").candidates) == count
    assert not list(tmp_path.glob("c/*"))
