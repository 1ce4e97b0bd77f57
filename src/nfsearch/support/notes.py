"""What a user should hear of work that was done another way than asked: a kernel refused, a step not captured.

Whoever notices it calls `note`. It is logged once a process, and whoever listens hears it each time, so that an
evaluation knows all that was said of it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

_heard: list[dict[str, None]] = []  # of each listener, in the order said; shared by all threads, as the kernels are
_logged: set[str] = set()


def note(text: str) -> None:
    """Says it to all who listen."""
    for said in _heard:
        said[text] = None
    if text not in _logged:
        _logged.add(text)
        logger.warning("%s", text)


@contextmanager
def listening() -> Iterator[dict[str, None]]:
    """Collects what is noted inside, each text once, as the keys of the mapping that it gives."""
    said: dict[str, None] = {}
    _heard.append(said)
    try:
        yield said
    finally:
        _heard[:] = [each for each in _heard if each is not said]  # another's may be equal
