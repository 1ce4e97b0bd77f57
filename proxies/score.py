"""What a short training run found out about a candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Score:
    """Loss on the fixed validation set after training on `tokens` tokens.

    `curve` holds (tokens seen, training loss in nats per token) pairs; `data` and `fidelity` say what the figures were
    measured on and with, so that scores of different settings are never compared by accident.
    """

    loss: float  # nats per token
    bits_per_byte: float
    perplexity: float
    tokens: int
    seconds: float
    curve: tuple[tuple[int, float], ...]
    seed: int
    data: str
    fidelity: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Score:
        curve = tuple((int(tokens), float(loss)) for tokens, loss in fields["curve"])
        return cls(**{**fields, "curve": curve})
