"""The short training run that a candidate is scored by."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from nfsearch.ops.model import HybridLM
from nfsearch.proxies.data import Corpus, batch, validation_batches
from nfsearch.proxies.job import Evaluation, Report
from nfsearch.proxies.settings import BITS_PER_BYTE, LOSS, PERPLEXITY, TrainingSettings
from nfsearch.proxies.step import mean_loss, training_step, upload
from nfsearch.space import Architecture
from nfsearch.support.metrics import Measurement

# cuBLAS repeats its sums only with fixed workspaces, and reads this before its first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_memory: Any = torch.utils.deterministic

_REPORTS = 50  # in a run, and so points in a curve
_LAST_RATE = 0.1  # of the peak, where the cosine ends


class Diverged(ArithmeticError):
    """The loss became NaN or infinite: the candidate has no score."""


def train_model(
    architecture: Architecture,
    corpus: Corpus,
    settings: TrainingSettings,
    *,
    seed: int,
    device: torch.device | str,
    report: Report | None = None,
) -> tuple[HybridLM, Evaluation]:
    """Trains a new model on `settings.tokens` tokens (whole steps, at least one) and measures its validation loss.

    `seed` decides the initial weights and the order of the data; with it, losses repeat bit for bit on one machine with
    one number of threads. The caller's random state is left alone. `report` is called about every 2 % of the run; what
    it raises ends the run. bf16 autocast on CUDA, float32 on a CPU.

    Raises ValueError when the architecture's vocabulary is smaller than the corpus's or the corpus is shorter than one
    window, `Diverged` when a loss is not finite.
    """
    if architecture.vocab < corpus.vocab:
        raise ValueError(f"a vocabulary of {architecture.vocab} is too small for {corpus.name}: it has {corpus.vocab}")
    started = time.perf_counter()
    device = torch.device(device)
    with _repeatable(device, seed):
        model = HybridLM(architecture).to(device)
        tokens, curve = _fit(model, corpus, settings, seed, report)
        loss = evaluate(model, corpus, settings, device)
    if not math.isfinite(loss):
        raise Diverged(f"the validation loss is {loss} after {tokens} tokens")
    metrics = {
        LOSS.name: loss,
        BITS_PER_BYTE.name: loss / math.log(2) / corpus.bytes_per_token,
        PERPLEXITY.name: math.exp(min(loss, 700.0)),  # the largest that a float holds
    }
    seconds = time.perf_counter() - started
    return model, Evaluation({name: Measurement(v) for name, v in metrics.items()}, tokens, seconds, tuple(curve))


@torch.no_grad()
def evaluate(model: HybridLM, corpus: Corpus, settings: TrainingSettings, device: torch.device | str) -> float:
    """Mean loss in nats per token over the fixed validation windows, which are the same for every candidate."""
    device = torch.device(device)
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    model.eval()
    for windows in validation_batches(corpus, settings.batch, settings.sequence):
        total += mean_loss(model, upload(windows, device)).double() * len(windows)
        count += len(windows)
    return total.item() / count


def _fit(
    model: HybridLM, corpus: Corpus, settings: TrainingSettings, seed: int, report: Report | None
) -> tuple[int, list[tuple[int, float]]]:
    """All steps of the optimizer. Returns the tokens seen and the curve."""
    shard = corpus.tokens("train")
    per_step = settings.batch * settings.sequence
    steps = max(1, settings.tokens // per_step)
    interval = math.ceil(steps / _REPORTS)
    losses: list[Tensor] = []  # since the last report, left on the device: reading each would wait for it
    curve: list[tuple[int, float]] = []
    with training_step(model, settings, steps) as update:
        for step in range(steps):
            windows = batch(shard, seed, step, settings.batch, settings.sequence)
            losses.append(update(windows, learning_rate(settings, step, steps)))
            if len(losses) == interval or step + 1 == steps:
                mean = _mean(losses, step + 1)
                losses = []
                curve.append(((step + 1) * per_step, mean))
                if report:
                    report(*curve[-1])
    return steps * per_step, curve


def _mean(losses: list[Tensor], step: int) -> float:
    """Of the losses up to and including step number `step`. Raises `Diverged` with the first that is not finite."""
    values = torch.stack(losses).float().tolist()
    for number, value in enumerate(values, step - len(values) + 1):
        if not math.isfinite(value):
            raise Diverged(f"the training loss is {value} at step {number}")
    return math.fsum(values) / len(values)


def learning_rate(settings: TrainingSettings, step: int, steps: int) -> float:
    """Linear from zero over the warm-up, then a cosine that reaches a tenth of the peak at the last step."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / (warm + 1)
    progress = (step - warm) / max(1, steps - 1 - warm)
    return settings.learning_rate * (_LAST_RATE + (1 - _LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))


@contextmanager
def _repeatable(device: torch.device, seed: int) -> Iterator[None]:
    """Seeds torch and, on CUDA, makes the device the current one, on which kernels are launched, and allows only those
    whose sums have one order; puts all back as it was.

    Merely asking (`warn_only`) leaves attention's backward pass unordered: losses then differ in the fourth digit.
    """
    cuda = [device] if device.type == "cuda" else []
    strict = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = _memory.fill_uninitialized_memory
    with torch.random.fork_rng(cuda), torch.cuda.device(device) if cuda else nullcontext():
        torch.manual_seed(seed)
        try:
            if cuda:
                torch.use_deterministic_algorithms(True)
                _memory.fill_uninitialized_memory = False  # a debugging aid that costs time
            yield
        finally:
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            _memory.fill_uninitialized_memory = fill
