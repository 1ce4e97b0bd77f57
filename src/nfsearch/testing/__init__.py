"""Conformance suites for extensions: the project's own pass them, and those of other packages can.

A suite is a class of pytest tests; subclass it as `Test...` and say what it is about. It needs pytest, which nfsearch
itself does not: `pip install pytest`. Install the package that declares the extension, as all are found by name.

    from nfsearch.testing import StrategySuite

    class TestMine(StrategySuite):
        name = "mine"
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nfsearch.testing.executors import ExecutorSuite
    from nfsearch.testing.exporters import ExporterSuite
    from nfsearch.testing.operators import OperatorSuite
    from nfsearch.testing.proxies import ProxySuite
    from nfsearch.testing.rules import RuleSuite
    from nfsearch.testing.strategies import StrategySuite

__all__ = ["ExecutorSuite", "ExporterSuite", "OperatorSuite", "ProxySuite", "RuleSuite", "StrategySuite"]


def __getattr__(name: str) -> Any:
    """Imports a suite when it is asked for: the one of operators needs torch, the others do not."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    kind = name.removesuffix("Suite").lower()
    module = {"strategy": "strategies", "proxy": "proxies"}.get(kind, f"{kind}s")
    try:
        import pytest  # noqa: F401
    except ImportError:
        raise ImportError("the suites of nfsearch.testing are tests of pytest: pip install pytest") from None
    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
