"""The weights that a run keeps: those of its front, and of others as long as there is room."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from nfsearch.proxies import Keeps, Proxy
from nfsearch.search.candidate import Candidate

WEIGHTS = "weights"  # in a run's folder


class Weights:
    """Trained candidates in the folder of a run, a folder each, within the bound that the proxy sets."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy = proxy if isinstance(proxy, Keeps) else None
        self._seen = 0  # candidates
        self._places: dict[int, tuple[Path, int]] = {}  # by number: folder and bytes

    def bound(self, history: Sequence[Candidate], front: Collection[int]) -> None:
        """Removes weights until they keep the bound: those of candidates that are dominated, the oldest first, and of
        the front only when nothing else is left."""
        if self._proxy is None or self._seen == len(history):
            return
        for candidate in history[self._seen :]:
            place = self._proxy.kept(candidate.proposal.job)
            if place and place.is_dir():
                self._places[candidate.number] = place, _size(place)
        self._seen = len(history)
        excess = sum(size for _, size in self._places.values()) - self._proxy.most_kept
        for number in sorted(self._places, key=lambda number: number in front):
            if excess <= 0:
                return
            place, size = self._places.pop(number)
            shutil.rmtree(place, ignore_errors=True)
            excess -= size


def _size(folder: Path) -> int:
    """In bytes. A worker whose candidate was stopped may still be writing: what goes away meanwhile counts nothing."""
    size = 0
    for file in folder.iterdir():
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return size
