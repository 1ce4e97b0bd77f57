"""What an exporter is: it writes a candidate in another form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nfsearch.proxies import Proxy
from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.space import Architecture
from nfsearch.support.registry import Registry

if TYPE_CHECKING:
    from nfsearch.ops.model import HybridLM


@dataclass(frozen=True)
class Winner:
    """A candidate that is to leave its search: its record, all that the search found, and ways to the weights.

    `proxy` makes what scored it, which may read and tokenise data. `train` gives the weights, those that the run kept
    or trained again as the search did; it raises ValueError where it cannot, and WorkFailed where training fails."""

    result: RunResult
    record: CandidateRecord
    proxy: Callable[[], Proxy]
    train: Callable[[], HybridLM]

    @property
    def architecture(self) -> Architecture:
        return Architecture.from_dict(self.record.architecture)

    @property
    def settings(self) -> dict[str, Any]:
        """The proxy's section of the config, with every default."""
        return dict(self.result.config.resolved.get("proxy") or {})


class Exporter(Protocol):
    """Writes a winner to a file or a folder, which appears whole or not at all; it never writes over anything."""

    def export(self, winner: Winner, out: Path) -> Path:
        """Returns what it wrote. Raises FileExistsError if something is there, ValueError for a winner that it cannot
        express; before any training, where that can be known."""


class Expresses(Exporter, Protocol):
    """An exporter that knows which designs it cannot express: `space: {serves: NAME}` then keeps a search to those that
    it can. One without this method can express anything."""

    def refusal(self, architecture: Architecture) -> str:
        """Why it cannot express this architecture, or "": one sentence that names the layer, its index and notation,
        and the setting, and after a colon the rule that they break. It is asked of every design that a search draws: it
        takes microseconds, and imports nothing heavy."""


def require_expressed(exporter: Expresses, architecture: Architecture) -> None:
    """Raises ValueError, with the refusal, for what an exporter cannot express."""
    if said := exporter.refusal(architecture):
        raise ValueError(f"{said}; --to yaml writes any design")


EXPORTERS: Registry[type[Exporter]] = Registry("nfsearch.exporters", "exporter")
