"""A job, which is an architecture to be evaluated in some way, and the evaluation that comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from nfsearch.proxies.cache import digest
from nfsearch.proxies.fidelity import Fidelity
from nfsearch.space import Architecture
from nfsearch.support.metrics import Measurement, Measurements

# Tokens seen, and the training loss since the last report in nats per token; the same once more says that something
# else is at work, which can be ended.
Report = Callable[[int, float], None]


@dataclass(frozen=True)
class Job:
    """An architecture to be evaluated at a fidelity with a seed. "Seen before" is asked of jobs, so an architecture may
    have many seeds and budgets; what a longer one shares with a shorter one, a proxy may keep and go on from."""

    architecture: Architecture
    fidelity: Fidelity
    seed: int = 0

    @cached_property
    def digest(self) -> str:
        """A short name, the same in every process."""
        return digest([self.architecture.digest, self.fidelity.digest, self.seed])


@dataclass(frozen=True)
class Evaluation:
    """What came of a job. `curve` holds (tokens seen, training loss in nats per token) pairs, `notes` what the worker
    had to say: a kernel that was refused, a step that could not be captured; `rungs` the validation loss at smaller
    budgets that were passed on the way, (tokens, value) pairs."""

    metrics: Measurements
    tokens: int
    seconds: float
    curve: tuple[tuple[int, float], ...] = ()
    notes: tuple[str, ...] = ()
    rungs: tuple[tuple[int, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "metrics": {name: [found.value, found.error] for name, found in self.metrics.items()},
            "tokens": self.tokens,
            "seconds": self.seconds,
            "curve": [list(point) for point in self.curve],
            "notes": list(self.notes),
            "rungs": [list(rung) for rung in self.rungs],
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Evaluation:
        return cls(
            metrics={name: Measurement(*values) for name, values in fields["metrics"].items()},
            tokens=int(fields["tokens"]),
            seconds=float(fields["seconds"]),
            curve=tuple((int(tokens), float(loss)) for tokens, loss in fields["curve"]),
            notes=tuple(fields["notes"]),
            rungs=tuple((int(tokens), float(value)) for tokens, value in fields.get("rungs", ())),
        )
