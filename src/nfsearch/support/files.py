"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to; it becomes `path` in one rename when the block ends without
    an error, and is removed when it ends with one. Readers see what was there before or the new content, never a part,
    and may read every file that the umask lets them, also where a library made it for its owner alone.

    What a killed process left of its attempt at the same path is removed first.

    Raises OSError where a folder that is not empty is at `path` already.
    """
    path = Path(path)
    _sweep(path)
    scratch = path.with_name(f"{_start(path)}{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield scratch
        if scratch.is_dir():
            allowed = scratch.stat().st_mode & 0o666
            for file in scratch.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    file.chmod(file.stat().st_mode | allowed)
        scratch.replace(path)
    except OSError as error:
        if error.filename == str(scratch):  # a name that nobody asked for
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        _remove(scratch)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Writes the file whole or not at all."""
    with naming(path), whole(path) as scratch:
        scratch.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Has an OSError of the writing that is done inside name the file, which that of a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.filename or not error.errno:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def local_path(text: str) -> Path:
    """The path that a user wrote, `~` followed. Raises ValueError for what no path can be."""
    try:
        path = Path(text).expanduser()
        path.exists()  # raises for a name that is too long, or that a file system cannot hold
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{text[:100]}: no path: {getattr(error, 'strerror', None) or error}") from None
    return path


def _start(path: Path) -> str:
    """How the names of scratch files begin. A process's number follows, which means nothing on another host."""
    return f".{path.name}.{zlib.crc32(platform.node().encode()):08x}-"


def _sweep(path: Path) -> None:
    """Removes what processes of this host that are no more left beside `path`."""
    left = re.compile(re.escape(_start(path)) + r"(\d{1,9})-[0-9a-f]{8}\.tmp")
    with suppress(OSError):  # no such folder, or none that may be listed: writing will say so, if it matters
        for other in path.parent.iterdir():
            if (found := left.fullmatch(other.name)) and not _alive(int(found[1])):
                _remove(other)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
