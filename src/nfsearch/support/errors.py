"""Errors that the command line tells apart, and errors in one line. A ValueError or OSError means wrong input and exit
status 2, but for a disk that is full or broken, for which no input is to blame."""

from __future__ import annotations

import errno

_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class WorkFailed(RuntimeError):
    """The input was right and the work failed; what finished is kept. Exit status 1."""


def of_the_disk(error: Exception) -> bool:
    """Whether it says that the disk, or the share of it that the user may take, is full or broken."""
    return isinstance(error, OSError) and error.errno in _DISK


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its type where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def typed_line(error: BaseException) -> str:
    """The type of an error and the first line of its message: `RuntimeError: out of memory`."""
    return f"{type(error).__name__}: {first_line(error) if str(error).strip() else ''}".rstrip()
