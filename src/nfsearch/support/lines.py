"""Files to which one process at a time adds lines."""

from __future__ import annotations

import fcntl
import logging
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from typing_extensions import Self

from nfsearch.support.files import naming

logger = logging.getLogger(__name__)


def lock(path: Path, advice: str = "wait for it, or end it") -> BinaryIO:
    """The file, to be read and added to by this process alone until it is closed. Raises ValueError with the advice
    where another process has it."""
    file = path.open("a+b", buffering=0)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process ends
    except BlockingIOError:
        file.close()
        raise ValueError(f"{path} is being written by another process: {advice}") from None
    except OSError:
        logger.warning("%s: the file system knows no locks, so see to it that one process writes here at a time", path)
    return file


class Lines:
    """A locked file whose last line, if a killed process left it unfinished, is cut off. Raises ValueError as `lock`
    does."""

    def __init__(self, path: Path, advice: str = "wait for it, or end it") -> None:
        self.path = path
        self._file = lock(path, advice)
        self._file.seek(0)
        content = self._file.read()
        self.begun = b"\n" in content
        self._file.truncate(content.rfind(b"\n") + 1)

    def add(self, line: str, *, sync: bool = False) -> None:
        """Handed to the system when this returns, with `sync` on disk. Raises OSError, naming the file, where the disk
        is full."""
        left = f"{line}\n".encode()
        with naming(self.path):
            while left:
                left = left[self._file.write(left) :]
            if sync:
                os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
