"""What is timed: a phase at a batch size and a context length."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Workload(BaseModel):
    """One forward pass whose time the table estimates.

    decode: one token for each of `batch` sequences that already hold `context` tokens.
    prefill: `context` tokens for each of `batch` sequences, from nothing to the first new token.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    phase: Literal["decode", "prefill"] = "decode"
    batch: int = Field(1, gt=0, description="sequences")
    context: int = Field(8192, ge=0, description="tokens: already held (decode), or to be read (prefill)")

    @model_validator(mode="after")
    def _something_to_read(self) -> Workload:
        if self.phase == "prefill" and not self.context:
            raise ValueError("prefill needs a context of at least 1 token to read")
        return self
