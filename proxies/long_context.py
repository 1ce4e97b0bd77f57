"""The training proxy with one metric more: how much a long context helps. Torch is imported in the workers alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field, model_validator
from typing_extensions import Self

from nfsearch.proxies.fidelity import Fidelity
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.tokenizers import load_tokenizer
from nfsearch.proxies.training import TrainingProxy
from nfsearch.support.metrics import NATS, Z_95, Measurement, Metric
from nfsearch.support.settings import SettingError

if TYPE_CHECKING:
    from nfsearch.ops.model import HybridLM

LONG_CONTEXT = Metric("long_context", NATS)


class LongContextSettings(TrainingSettings):
    """A short training run, and the length at which the trained model is then asked what its context is worth."""

    kind: str = "long-context"
    context: int = Field(
        default=2048,
        gt=3,
        le=2**24,
        description="tokens in a long window, more than `sequence`; windows lie within documents of the validation "
        "text that are so long",
    )

    @model_validator(mode="after")
    def _longer_than_trained(self) -> Self:
        if self.context <= self.sequence:
            raise SettingError(f"expected more than `sequence`, {self.sequence}, found {self.context}", "context")
        return self

    def fidelity(self, data: str, device: str, tokens: int | None = None) -> Fidelity:
        found = super().fidelity(data, device, tokens)
        return replace(found, recipe=f"{found.recipe}; long windows of {self.context}")


class LongContextProxy(TrainingProxy):
    """Trains as the training proxy does. `long_context` is the loss of the last quarter of long windows minus that of
    their first quarter, in nats per token: below 0 where a model makes use of what it has read. Its error bar is the
    half width of a 95 % interval over windows (infinite for a single one).

    Windows begin where documents do, so the difference also has in it that texts begin otherwise than they go on:
    compare candidates, whose windows are the same.
    """

    Settings = LongContextSettings
    metrics: ClassVar[Sequence[Metric]] = (*TrainingProxy.metrics, LONG_CONTEXT)
    settings: LongContextSettings

    def __init__(self, settings: LongContextSettings, device: str) -> None:
        """Raises ValueError where no document of the validation text is long enough, too."""
        super().__init__(settings, device)
        self.windows()

    def windows(self) -> np.ndarray:
        """int64 [windows, context + 1], side by side from the beginning of each document that is long enough; two in a
        row share one token. Raises ValueError where there are none."""
        shard, length = self.corpus.tokens("validation"), self.settings.context
        end = load_tokenizer(self.corpus.tokenizer).end
        ends = np.flatnonzero(shard == end) if end is not None else np.array([], int)
        starts = np.concatenate(([0], ends + 1))
        sizes = np.diff(np.concatenate((starts, [len(shard)])))
        found = [
            start + turn * length
            for start, size in zip(starts, sizes, strict=True)
            for turn in range((size - 1) // length)
        ]
        if not found:
            raise ValueError(
                f"proxy.context: the longest document of {self.corpus.name} for validation has {max(sizes):,} tokens, "
                f"and a window of {length:,} takes {length + 1:,}: set a smaller context, or more validation_tokens"
            )
        return shard[np.array(found)[:, None] + np.arange(length + 1)].astype(np.int64)

    @property
    def after(self) -> LongWindows:
        return LongWindows(self.windows(), self.settings.context)


@dataclass(frozen=True)
class LongWindows:
    """See `nfsearch.proxies.needs.Afterwards`."""

    windows: np.ndarray  # int64 [windows, length + 1]
    length: int

    def at_once(self, settings: TrainingSettings) -> int:
        """As many tokens as a step computes at a time, at most all."""
        tokens = (settings.micro_batch or settings.batch) * settings.sequence
        return min(len(self.windows), max(1, tokens // self.length))

    def measure(self, model: HybridLM, settings: TrainingSettings) -> dict[str, Measurement]:
        each = self.at_once(settings)
        starts = range(0, len(self.windows), each)
        gains = np.concatenate([self.read(model, self.windows[start : start + each]) for start in starts])
        error = Z_95 * float(gains.std(ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
        return {LONG_CONTEXT.name: Measurement(float(gains.mean()), error)}

    def read(self, model: HybridLM, windows: np.ndarray) -> np.ndarray:
        """By how much the loss of the last quarter is above that of the first, [windows]."""
        import torch
        from torch.nn.functional import cross_entropy

        from nfsearch.proxies.step import upload

        device, quarter = model.embedding.weight.device, self.length // 4
        model.eval()
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, device.type == "cuda"):
            tokens = upload(windows, device)
            hidden, targets = model.hidden(tokens[:, :-1]), tokens[:, 1:]
            start, end = (
                cross_entropy(model.head(hidden[:, each]).mT, targets[:, each], reduction="none").mean(1)
                for each in (slice(quarter), slice(-quarter, None))
            )
            gains: np.ndarray = (end - start).double().cpu().numpy()
        return gains
