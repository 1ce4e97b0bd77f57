"""Ray's folder for sockets and logs."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "nfsearch-ray-"
_LOCK = "lock"  # held for as long as the folder is in use; the system lets go of it when a process is killed


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder that nobody else can look into, removed at the end. Those that killed processes left are removed too.

    It is not in /tmp/ray, which on a shared machine may belong to somebody else, and its name is short, since paths of
    sockets are limited to about a hundred characters.
    """
    base = Path(os.environ.get("RAY_TMPDIR", "/tmp"))
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))  # mode 0700
    try:
        with (folder / f"{_LOCK}.new").open("x") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / f"{_LOCK}.new").rename(folder / _LOCK)  # nobody finds it before it is held
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(base: Path) -> None:
    for folder in base.glob(f"{PREFIX}*"):
        with suppress(OSError):  # somebody else's, or gone already
            if folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where the folder is in use
                shutil.rmtree(folder, ignore_errors=True)
