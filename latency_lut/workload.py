"""What is timed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import Field, model_validator

from nfsearch.support.metrics import SECONDS, Metric
from nfsearch.support.settings import Settings

_USES = {
    "decode": ("batch", "context"),
    "prefill": ("batch", "context"),
    "generation": ("batch", "prompt", "tokens"),
    "throughput": ("batches", "context", "memory_gb"),
}
_MOST_SEQUENCES, _LONGEST = 2**16, 2**24  # more than any model decodes at once, or holds
_FINEST = 512  # tokens; below it, the time of attention over the past hardly changes


@dataclass(frozen=True)
class Span:
    """Forward passes of one phase and batch: `count` of them, at the contexts `first`, `first` + 1, ..."""

    phase: Literal["decode", "prefill"]
    batch: int
    first: int
    count: int = 1

    @property
    def last(self) -> int:
        return self.first + self.count - 1

    @property
    def grid(self) -> tuple[int, ...]:
        """The contexts to measure: a lone pass's own; else both ends and the powers of two between them."""
        if self.count == 1:
            return (self.first,)
        end = self.first + self.count
        powers = (1 << n for n in range(_FINEST.bit_length() - 1, end.bit_length()))
        return (self.first, *(power for power in powers if self.first < power < end), end)


class Workload(Settings):
    """Something whose time the table estimates.

    decode: one token for each of `batch` sequences that already hold `context` tokens.
    prefill: `context` tokens for each of `batch` sequences, from nothing to the first new token.
    generation: `prompt` tokens are read (if there are any), then `tokens` are decoded one by one.
    throughput: the time of one token while decoding the largest of `batches` that fits into memory, all sequences
    holding `context` tokens. Only batches that were measured are considered: nothing is interpolated between them.
    """

    phase: Literal["decode", "prefill", "generation", "throughput"] = "decode"
    batch: int = Field(default=1, gt=0, le=_MOST_SEQUENCES, description="sequences")
    context: int = Field(
        default=8192, ge=0, le=_LONGEST, description="tokens: already held (decode), or to be read (prefill)"
    )
    prompt: int = Field(default=0, ge=0, le=_LONGEST, description="tokens read before a generation")
    tokens: int = Field(default=8192, gt=0, le=_LONGEST, description="tokens that a generation decodes")
    batches: tuple[int, ...] = Field(default=(1, 16, 128), min_length=1, description="what throughput chooses from")
    memory_gb: float | None = Field(
        default=None, gt=0, description="throughput's, in 1e9 bytes; null = 95 % of the device's"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Workload:
        uses = _USES[self.phase]
        for name, field in type(self).model_fields.items():
            if name not in ("phase", *uses) and getattr(self, name) != field.default:
                raise ValueError(f"{self.phase} takes {', '.join(uses)}, not {name}")
        if self.phase == "prefill" and not self.context:
            raise ValueError("prefill needs a context of at least 1 token to read")
        if not 1 <= min(self.batches) <= max(self.batches) <= _MOST_SEQUENCES:
            raise ValueError(f"batches: expected numbers from 1 to {_MOST_SEQUENCES:,}, found {list(self.batches)}")
        if len(set(self.batches)) < len(self.batches):
            raise ValueError(f"batches: a number is listed twice in {list(self.batches)}")
        return self

    @property
    def spans(self) -> tuple[Span, ...]:
        """The passes whose times add up to this workload's. Throughput has none of its own: see `choices`."""
        match self.phase:
            case "decode" | "prefill":
                return (Span(self.phase, self.batch, self.context),)
            case "generation":
                read = (Span("prefill", self.batch, self.prompt),) if self.prompt else ()
                return (*read, Span("decode", self.batch, self.prompt, self.tokens))
        raise ValueError("throughput is the time of one of its choices")

    @property
    def choices(self) -> tuple[Workload, ...]:
        """The workloads to be measured: this one; for throughput one decode step at each batch, the largest first."""
        return self._steps if self.phase == "throughput" else (self,)

    @cached_property
    def _steps(self) -> tuple[Workload, ...]:
        return tuple(Workload(batch=batch, context=self.context) for batch in sorted(self.batches, reverse=True))

    @property
    def length(self) -> int:
        """Text tokens that each sequence's state has room for."""
        return self.spans[-1].last + (self.phase != "prefill")

    @property
    def produced(self) -> int:
        """Tokens, read or decoded, that the workload's time is spent on."""
        each = {"decode": 1, "prefill": self.context, "generation": self.tokens}
        return self.batch * each[self.phase] if self.phase in each else 1

    def metric(self, name: str) -> Metric:
        """Its time, by this name."""
        return Metric(name, SECONDS, self.produced)
