"""Folders that are either complete or absent: where tokens and trained tokenizers are kept between runs."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from nfsearch.support.errors import WorkFailed, first_line

_UNFINISHED = ".unfinished-"
_STALE_S = 24 * 3600.0


def cache_dir() -> Path:
    """`$NFSEARCH_CACHE`, or `~/.cache/nfsearch`."""
    return Path(os.environ.get("NFSEARCH_CACHE") or "~/.cache/nfsearch").expanduser()


def digest(value: Any) -> str:
    """A short name for a JSON value, the same in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=10).hexdigest()


@contextmanager
def publish(folder: Path) -> Iterator[Path]:
    """A scratch folder to write into; it becomes `folder` in one rename when the block ends without an error.

    A process killed in the middle leaves only a scratch folder, which nobody reads and a later call removes. Of two
    processes that publish the same folder the first one wins and the other's work is dropped, so that nobody sees
    a folder change after opening it. Raises WorkFailed where it cannot be written: the disk is full, or not ours.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _sweep(folder.parent)
        scratch = folder.parent / f"{_UNFINISHED}{secrets.token_hex(8)}"
        scratch.mkdir()  # with an ordinary mode, so that users can share a cache
        try:
            yield scratch
            try:
                scratch.rename(folder)
            except OSError:
                if not folder.is_dir():
                    raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise WorkFailed(f"{folder.parent}: cannot be written: {reason}; NFSEARCH_CACHE names another place") from error


def _sweep(folder: Path) -> None:
    """Removes what processes that were killed left, once it is so old that nobody can be writing it."""
    for left in folder.glob(_UNFINISHED + "*"):
        with suppress(FileNotFoundError):  # its owner may be alive, and it goes away while we look
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
