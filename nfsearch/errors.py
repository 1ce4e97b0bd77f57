"""Errors that the command line tells apart. A ValueError or OSError means wrong input and exit status 2."""

from __future__ import annotations


class WorkFailed(RuntimeError):
    """The input was right and the work failed; what finished is kept. Exit status 1."""
