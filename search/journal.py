"""The file of an Optuna journal: locked by one writer, mended after a kill, refused when it is damaged."""

from __future__ import annotations

import fcntl
import json
import logging
import os
from pathlib import Path
from typing import BinaryIO

from optuna.storages.journal import JournalFileOpenLock

logger = logging.getLogger(__name__)


class NoLock(JournalFileOpenLock):
    """No lock for each write: `lock` is held as long as the store is open. Optuna's own locks are files, which outlive
    a killed process; the next one would wait 30 seconds for them."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def lock(path: Path) -> BinaryIO:
    journal = path.open("ab")
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process ends
    except BlockingIOError:
        journal.close()
        raise ValueError(f"{path} is being written by another process: wait for it, or end it") from None
    except OSError:
        pass  # a file system without locks
    return journal


def mend(path: Path) -> None:
    """Cuts off a last line that a kill left unfinished. Raises ValueError for any other damage.

    Optuna skips such a line when reading, but appends behind it, which spoils the next record too."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    check_lines(path, content[:whole])
    if whole < len(content):
        logger.warning("%s: the last record was cut short (%d bytes) and is dropped", path, len(content) - whole)
        os.truncate(path, whole)


def check_lines(path: Path, content: bytes) -> None:
    lines = content.split(b"\n")[:-1]  # what follows the last newline is no record yet
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "op_code" not in record:
            found = line[:40].decode(errors="replace")
            raise ValueError(
                f"{path}, line {number}: expected a record of an Optuna journal, found {found!r}; "
                "the file is damaged or is something else"
            )
