"""Versions of installed packages, none of which is imported, and how to install those that are missing."""

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


def to_install(extra: str = "") -> str:
    """How to install nfsearch with an extra. No package index has it yet, so this is said of its sources."""
    return f"pip install '.[{extra}]' in nfsearch's folder" if extra else "pip install . in nfsearch's folder"


def versions() -> dict[str, str]:
    """Python's version and that of each installed library that decides results."""
    found = {name: installed(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **{name: known for name, known in found.items() if known}}
