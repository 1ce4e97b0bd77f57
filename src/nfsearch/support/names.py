"""Hints for misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint `, did you mean X?` for a misspelt name, or nothing."""
    folded = {word.lower(): word for word in known}
    close = difflib.get_close_matches(name.lower(), list(folded), n=1, cutoff=0.5)
    return f", did you mean {folded[close[0]]}?" if close else ""
