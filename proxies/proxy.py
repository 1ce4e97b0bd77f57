"""What a proxy is: it says what a job's metrics are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from pydantic import Field
from typing_extensions import Self

from nfsearch.proxies.bounds import Bounds
from nfsearch.proxies.fidelity import Fidelity
from nfsearch.proxies.job import Evaluation, Job, Report
from nfsearch.space import Architecture, SearchSpace
from nfsearch.support.metrics import Metric
from nfsearch.support.registry import Registry
from nfsearch.support.settings import Settings

if TYPE_CHECKING:
    from nfsearch.ops.model import HybridLM


class ProxySettings(Settings):
    """The fields that the `proxy:` section of a config has whatever its kind; a proxy's own settings extend it."""

    kind: str = Field(default="training", description="how candidates are scored: the name of a proxy")

    def anchored(self) -> Self:
        """The same with local paths made absolute, so that they mean the same to every worker."""
        return self

    @property
    def vocabulary(self) -> int | None:
        """The size of the vocabulary, where it is known without reading any data."""
        return None

    def least_seconds(self, architecture: Architecture, device: str) -> float:
        """What a candidate takes at least on one device of this kind, "cpu" or "cuda", as far as that is known."""
        return 0.0


class Proxy(Protocol):
    """Scores candidates. It is made once from its settings and the kind of device ("cpu" or "cuda"), by the process
    that runs the search, and pickled to the workers, which call `start` once and `evaluate` for each job.

    The constructor raises ValueError or OSError for settings that cannot be served.
    """

    Settings: ClassVar[type[ProxySettings]]
    metrics: ClassVar[Sequence[Metric]]  # what an evaluation has a measurement of; the first is the default objective

    def __init__(self, settings: ProxySettings, device: str) -> None: ...

    @property
    def vocab(self) -> int:
        """The size of the vocabulary that candidates must have at least."""

    @property
    def fidelity(self) -> Fidelity:
        """What candidates are measured with, unless a job says otherwise."""

    def check(self, space: SearchSpace) -> None:
        """Raises ValueError if some member of the space cannot be scored."""

    def start(self) -> None:
        """Prepares a worker process: imports what is heavy, opens what has to be there. Raises OSError where this
        machine does not have it, though another may."""

    def evaluate(self, job: Job, report: Report) -> Evaluation:
        """Raises ArithmeticError where the job has no metrics (a loss that diverged), TooLarge where it needs more than
        this machine has or more time than it may take, OSError as `start` does; what `report` raises ends it."""


@runtime_checkable
class Trains(Protocol):
    """A proxy that trains the candidates themselves, whose weights can be exported."""

    tokenizer: str  # what `load_tokenizer` takes

    def train(self, job: Job, report: Report | None = None) -> tuple[HybridLM, Evaluation]:
        """The trained model of a job, and its evaluation."""


@runtime_checkable
class Foresees(Protocol):
    """A proxy that can tell before it starts with a job what that needs, and raises TooLarge then."""

    def bound(self, bounds: Bounds) -> None:
        """Says what a job may take: an executor does, before the proxy travels to its workers."""


@runtime_checkable
class Keeps(Protocol):
    """A proxy that can keep what it trained, to go on with it and to export it. Where workers do not share a disk with
    the search, each keeps its own."""

    def keep_in(self, folder: Path) -> None:
        """Keeps it there from now on."""

    def kept(self, job: Job) -> Path | None:
        """The folder where a job's is kept, if there is any yet; None where nothing is to be kept."""

    @property
    def most_kept(self) -> float:
        """Bytes on disk that all of it may take."""

    def weights(self, job: Job) -> HybridLM | None:
        """The trained model of a job, if its weights are here. Raises OSError where they cannot be read."""


@dataclass(frozen=True)
class TokenSource:
    """How many of the training tokens at hand are from one source; how many of them are different ones, as a source
    that is too small for its share is repeated; and how often a candidate sees each of these on average."""

    name: str
    tokens: int
    share: float
    different: int
    seen: float


@runtime_checkable
class Reads(Protocol):
    """A proxy that trains on tokens of one or more sources."""

    @property
    def sources(self) -> Sequence[TokenSource]:
        """Where its training tokens come from, the largest first."""


PROXIES: Registry[type[Proxy]] = Registry("nfsearch.proxies", "proxy")
