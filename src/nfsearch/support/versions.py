"""Versions of installed packages, none of which is imported."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

_LIBRARIES = ("nfsearch", "torch", "triton", "ray", "optuna")


def installed(package: str) -> str | None:
    """The version of an installed package; None if there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Python's version and that of each installed library that decides results."""
    found = {name: installed(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **{name: known for name, known in found.items() if known}}
