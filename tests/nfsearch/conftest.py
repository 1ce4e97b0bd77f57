from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from nfsearch.cli.main import main
from nfsearch.report.result import RunResult
from nfsearch.run.search import search
from tests.nfsearch.fake_run import make_result
from tests.nfsearch.runs import Run, tiny_config


@pytest.fixture
def result() -> RunResult:
    return make_result()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny search that has run to its end, with one thread as a worker process has; one for all test
    processes, so copy it before changing it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever is first runs it, the others wait
        if not (folder / "run" / "result.json").exists():
            with single_thread():
                assert search(tiny_config(folder), folder / "run") == 0
    return folder / "run"


@contextmanager
def single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Losses repeat bit for bit with one number of threads, and worker processes have one."""
    with single_thread():
        yield


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command line, expects it to fail and to write nothing, and returns the message."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NFSEARCH_CACHE", str(tmp_path.parent / "cache"))

    def run(*arguments: str | Path, status: int = 2) -> str:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        monkeypatch.setattr(sys, "argv", ["nfsearch", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert end.value.code == status, err
        assert out == ""
        assert "Traceback" not in err
        assert err.count("nfsearch: ") == 1 or "Usage: " in err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return err

    return run
