"""Files appear whole, with the modes that the umask allows, and killed writers leave nothing for good."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfsearch.proxies.cache import publish
from nfsearch.support.files import whole, write_atomically


@pytest.fixture(params=[0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_modes_are_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    write_atomically(tmp_path / "file", "text")
    with whole(tmp_path / "folder") as scratch:
        scratch.mkdir()
        os.close(os.open(scratch / "weights", os.O_CREAT | os.O_WRONLY, 0o600))  # as safetensors makes its files
        os.close(os.open(scratch / "script", os.O_CREAT | os.O_WRONLY, 0o700))
    assert mode(tmp_path / "file") == mode(tmp_path / "folder" / "weights") == 0o666 & ~umask
    assert mode(tmp_path / "folder") == 0o777 & ~umask
    assert mode(tmp_path / "folder" / "script") == 0o700 | 0o666 & ~umask
    with publish(tmp_path / "tokens"):
        pass
    assert mode(tmp_path / "tokens") == 0o777 & ~umask


def test_what_a_killed_process_left_goes_with_the_next_attempt(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from nfsearch.proxies.cache import publish
from nfsearch.support.files import whole
with whole(sys.argv[1]) as scratch, whole(sys.argv[2]) as folder:
    scratch.write_text("half")
    folder.mkdir()
    (folder / "weights").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "result.json", tmp_path / "model"])
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    with whole(tmp_path / "result.json") as scratch:  # of a process that lives: nobody else may remove it
        scratch.write_text("mine")
        write_atomically(tmp_path / "result.json", "other")
        assert scratch.read_text() == "mine"
        assert len(list(tmp_path.iterdir())) == 3
    with pytest.raises(ZeroDivisionError), whole(tmp_path / "model"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]
