"""The file of an Optuna journal: given whole records only, mended after a kill, refused when damaged."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

from nfsearch.support.files import naming

logger = logging.getLogger(__name__)


class NoLock(JournalFileOpenLock):
    """No lock for each write: a store holds the file's lock as long as it is open. Optuna's own locks are files, which
    outlive a killed process; the next one would wait 30 seconds for them."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


class JournalFile(JournalFileBackend):
    """Optuna's journal in a file, of which a full disk leaves no part of a record: the next one would be spoilt too."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), lock_obj=NoLock(str(path)))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Raises OSError, naming the file, where the records cannot be written; then it is as it was before."""
        before = self._path.stat().st_size
        try:
            with naming(self._path):
                super().append_logs(logs)
        except OSError:
            os.truncate(self._path, before)
            raise


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
        except (ValueError, RecursionError):  # no JSON, or brackets in brackets without end
            record = None
        if not isinstance(record, dict) or "op_code" not in record:
            found = line[:40].decode(errors="replace")
            raise ValueError(
                f"{path}, line {number}: expected a record of an Optuna journal, found {found!r}; "
                "the file is damaged or is something else"
            )
