"""The folder `fla` here stands in for flash-linear-attention."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nfsearch.ops import fla_layers

FOLDER = Path(__file__).parent


def forget() -> None:
    """Nothing is known of any layer."""
    for known in (fla_layers._run_once, fla_layers._cost):
        known.cache_clear()


@contextmanager
def stand_in() -> Iterator[None]:
    """`fla` is the stand-in in this process, whatever is installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] == "fla"]:
            patch.delitem(sys.modules, name)
        patch.syspath_prepend(FOLDER)
        importlib.import_module("fla.layers")
        yield
        for name in ("fla", "fla.layers"):
            del sys.modules[name]
    forget()
