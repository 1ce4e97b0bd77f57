"""What a study knows: a line of JSON for each loss that was measured or each training that failed.

Each process that trains has a file of its own, to which it adds whole lines, on disk before the next work begins. A
line that a killed process left unfinished is no line: nobody reads it, and the next one begins below it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nfsearch.proxies import Evaluation, Fidelity
from nfsearch.support.lines import Lines

_SUFFIX = ".journal"


@dataclass(frozen=True)
class Entry:
    """What came of training one architecture by a recipe, with a seed, up to a budget."""

    architecture: str  # digest
    recipe: str
    tokens: int  # the budget
    seed: int
    fidelity: Fidelity
    device: str
    evaluation: Evaluation | None
    seconds: float  # that the budget takes from the beginning: see `nfsearch.studies.training`
    error: str | None = None
    final: bool = True  # a failure that would come again; else the next sitting tries once more

    @property
    def training(self) -> tuple[str, str, int]:
        """The training that this is a budget of."""
        return self.architecture, self.recipe, self.seed

    def to_line(self) -> str:
        found = self.evaluation.to_dict() if self.evaluation else None
        return json.dumps({**asdict(self), "fidelity": self.fidelity.to_dict(), "evaluation": found})

    @classmethod
    def from_line(cls, line: str) -> Entry:
        fields: dict[str, Any] = json.loads(line)
        found = fields["evaluation"]
        rest = {
            "fidelity": Fidelity.from_dict(fields["fidelity"]),
            "evaluation": Evaluation.from_dict(found) if found else None,
        }
        return cls(**{**fields, **rest})


Known = Mapping[tuple[str, str, int], Mapping[int, Entry]]  # by training, then by budget


class Journal(Lines):
    """The file of one process, which no other writes. Raises ValueError where another is at it."""

    def __init__(self, folder: Path, share: tuple[int, int]) -> None:
        super().__init__(folder / f"share-{share[0]}-of-{share[1]}{_SUFFIX}", "give it another --share")

    def add_entry(self, entry: Entry) -> None:
        """On disk when this returns. Raises OSError, naming the file, where it is full."""
        self.add(entry.to_line(), sync=True)


def read(folder: Path) -> Known:
    """All that the processes of a study have written. Raises ValueError, naming the line, for what is no journal."""
    found: dict[tuple[str, str, int], dict[int, Entry]] = {}
    for entry in _entries(sorted(folder.glob(f"*{_SUFFIX}"))):
        known = found.setdefault(entry.training, {})
        if entry.tokens not in known or known[entry.tokens].evaluation is None:
            known[entry.tokens] = entry
    return found


def _entries(paths: Iterable[Path]) -> Iterable[Entry]:
    for path in paths:
        for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
            try:
                json.loads(line)
            except ValueError:
                continue  # empty, or what a killed process left of a line
            try:
                yield Entry.from_line(line.decode())
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path}:{number}: no entry of a study's journal ({error!r})") from None
