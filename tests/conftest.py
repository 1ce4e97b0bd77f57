from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nfsearch.cli.main import main

# Whoever runs the tests in the background may ignore these, as `nohup` does, and so would they.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: one of them begun at the end would keep a single process busy."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What is there by now stays, PyTorch above all: each collection of garbage need not look through it, which takes
    a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[str, str]]:
    """The command line within this process, which has imported torch already: checks the exit status, returns what went
    to stdout and stderr. It runs in the folder of the test."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path | float, status: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["nfsearch", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capsys.readouterr()
        assert end.value.code == status, err
        return out, err

    return run
