"""The log of a run's folder, and how its work fails."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nfsearch.support.errors import WorkFailed

LOG = "log.txt"


class _File(logging.FileHandler):
    """There once something was logged; says nothing on stderr where it cannot be written."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk is told of once, by the work that it ends."""


@contextmanager
def logged(folder: Path) -> Iterator[None]:
    """What nfsearch logs goes to the folder's log, which is there once something was logged."""
    handler = _File(folder / LOG)
    logger = logging.getLogger("nfsearch")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


def failed(folder: Path, error: Exception, again: str) -> WorkFailed:
    """What the user is told of an error that ended the work on a run, whose traceback the log has; `again` is the
    command that goes on with it."""
    logging.getLogger("nfsearch").error("%s", "".join(traceback.format_exception(error)))
    log = folder / LOG
    details = f" (details in {log})" if log.is_file() and log.stat().st_size else ""
    return WorkFailed(
        f"{str(error).strip() or type(error).__name__}{details}. What finished is kept; to go on: {again}"
    )
