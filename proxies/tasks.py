"""Synthetic tasks as proxies: whether the operators of a candidate can do what a task asks, in seconds.

A stand-in learns the task from sequences that are drawn on the device and never repeat, and is scored by the share of
the answers that it gets wrong on sequences it has not seen. The stand-in has the candidate's layers, narrowed if so
asked, and the task's small vocabulary, so that its operators decide and not its embedding.

A sequence is packed into one row of int64: its tokens, the positions at which something is asked, and the answers there
(`UNASKED` where a position does not count after all). Loss and score look at these positions alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from nfsearch.proxies.proxy import ProxySettings
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.support.metrics import Metric

if TYPE_CHECKING:
    from torch import Generator, Tensor

UNASKED = -100  # an answer that does not count; cross-entropy leaves it out by itself


class TaskSettings(ProxySettings):
    """A synthetic task: its sequences, and how long a candidate may learn from them."""

    sequence: int = Field(default=128, gt=2, le=2**16, description="tokens in a sequence")
    symbols: int = Field(default=16, gt=3, le=2**20, description="different tokens")
    examples: int = Field(default=100_000, gt=0, le=10**9, description="sequences that a candidate learns from")
    batch: int = Field(default=128, gt=0, le=2**16, description="sequences in a step")
    learning_rate: float = Field(default=1e-2, gt=0, le=10, description="peak learning rate")
    narrow: int = Field(
        default=1, ge=1, le=2**16, description="how many times narrower the model is that stands for the candidate"
    )
    test: int = Field(default=512, gt=0, le=10**6, description="sequences that the score is taken on")

    @property
    def vocabulary(self) -> int:
        """All tokens, those with a meaning of their own included."""
        return self.symbols

    @property
    @abstractmethod
    def asked(self) -> int:
        """Positions of a sequence at which something is asked."""

    @property
    @abstractmethod
    def answers(self) -> int:
        """How many answers there are to guess from, for who knows what is asked and nothing of where it stood."""

    @property
    def recipe(self) -> TrainingSettings:
        """How it is trained: as the training proxy trains, but for what is said here, and with free weights, as in
        Zoology."""
        return TrainingSettings(
            tokens=self.examples * self.sequence,
            sequence=self.sequence,
            batch=self.batch,
            learning_rate=self.learning_rate,
            weight_norm=False,
            narrow=self.narrow,
            validation_tokens=self.test * self.sequence,
        )


class Task(ABC):
    """A task says its name, which is its metric's, its settings and how its sequences are drawn."""

    metrics: ClassVar[Sequence[Metric]]  # one: the share of answers that are wrong
    decodes: ClassVar[bool] = False  # whether all answers are read from the last position, by a decoder of its own
    settings: TaskSettings

    @property
    def name(self) -> str:
        return self.metrics[0].name

    @abstractmethod
    def draw(self, count: int, generator: Generator) -> Tensor:
        """So many new sequences on the generator's device, which the host does not wait for: int64 [count, sequence +
        2 asked], packed as this module says."""
