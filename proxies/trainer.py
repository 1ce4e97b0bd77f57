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
from nfsearch.proxies.bounds import Bounds
from nfsearch.proxies.checkpoints import Checkpoints, Trunk
from nfsearch.proxies.data import Corpus, batch, validation_batches
from nfsearch.proxies.job import Evaluation, Report
from nfsearch.proxies.needs import Afterwards, fitted, require_room
from nfsearch.proxies.schedule import Schedule
from nfsearch.proxies.settings import BITS_PER_BYTE, LOSS, PERPLEXITY, TrainingSettings
from nfsearch.proxies.step import Step, mean_loss, training_step, upload
from nfsearch.space import Architecture
from nfsearch.support.metrics import Measurement
from nfsearch.support.phases import phase

# cuBLAS repeats its sums only with fixed workspaces, and reads this before its first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_memory: Any = torch.utils.deterministic

REPORTS = 50  # in a run, and so points in a curve
_VALIDATED = 2**15  # tokens at a time, so that a GPU takes longer to compute than the host to launch
# Seconds between two checkpoints, and how many times as long as one took: what a kill may cost, and what they may.
_APART, _TIMES = 15.0, 20


class Diverged(ArithmeticError):
    """The loss became NaN or infinite: the candidate has no score."""


def train_model(
    architecture: Architecture,
    corpus: Corpus,
    settings: TrainingSettings,
    *,
    seed: int,
    device: torch.device | str,
    tokens: int | None = None,
    checkpoints: Checkpoints | None = None,
    report: Report | None = None,
    bounds: Bounds | None = None,
    after: Afterwards | None = None,
) -> tuple[HybridLM, Evaluation]:
    """Trains a new model on `tokens` tokens, by default `settings.tokens` (whole steps, at least one), and measures its
    validation loss, and that at each of the rungs below.

    `seed` decides the initial weights and the order of the data; with it, losses repeat bit for bit on one machine with
    one number of threads, whatever rungs there are and wherever the training was stopped and gone on with from
    `checkpoints`, where one on a trunk is kept at each branch and every few seconds. The caller's random state is left
    alone. `report` is called about every 2 % of the run; what it raises ends the run. bf16 autocast on CUDA, float32 on
    a CPU. What `after` measures of the trained model is among its metrics.

    Raises ValueError when the architecture's vocabulary is smaller than the corpus's or the corpus is shorter than one
    window, `Diverged` when a loss is not finite, OSError for a checkpoint that is damaged; before the first step
    TooLarge for what the device has no room for, or what would take longer than `bounds` allow.
    """
    if architecture.vocab < corpus.vocab:
        raise ValueError(f"a vocabulary of {architecture.vocab} is too small for {corpus.name}: it has {corpus.vocab}")
    started = time.perf_counter()
    device, tokens = torch.device(device), tokens or settings.tokens
    bounds = bounds or Bounds()
    with repeatable(device, seed):
        with phase("model"):
            require_room(architecture, settings, device, bounds)
            model = HybridLM(architecture).to(device)
        training = _Training(model, corpus, settings, seed, tokens, checkpoints, report)
        training.fit(bounds, started, after)
        training.run()
        loss = evaluate(model, corpus, training.settings, device)
    seen = training.schedule.steps * training.per_step
    if not math.isfinite(loss):
        raise Diverged(f"the validation loss is {loss} after {seen} tokens")
    if checkpoints:
        checkpoints.save_loss(tokens, loss)
        checkpoints.save_weights(tokens, model)
    metrics = {
        LOSS.name: loss,
        BITS_PER_BYTE.name: loss / math.log(2) / corpus.bytes_per_token,
        PERPLEXITY.name: math.exp(min(loss, 700.0)),  # the largest that a float holds
    }
    found = {name: Measurement(value) for name, value in metrics.items()}
    seconds, rungs = time.perf_counter() - started, tuple(training.rungs.items())
    if after:
        with repeatable(device, 0):
            found |= after.measure(model, training.settings)
    return model, Evaluation(found, seen, seconds, tuple(training.curve), rungs=rungs)


@torch.no_grad()
def evaluate(model: HybridLM, corpus: Corpus, settings: TrainingSettings, device: torch.device | str) -> float:
    """Mean loss in nats per token over the fixed validation windows, which are the same for every candidate."""
    device = torch.device(device)
    at_once = settings.micro_batch or settings.batch
    if device.type == "cuda" and not settings.micro_batch:  # there is room, as nothing is kept for gradients
        at_once = max(at_once, _VALIDATED // settings.sequence)
    model.eval()
    with phase("validation"):
        total, count = torch.zeros((), dtype=torch.float64, device=device), 0
        for windows in validation_batches(corpus, at_once, settings.sequence):
            total += mean_loss(model, upload(windows, device)).double() * len(windows)
            count += len(windows)
        return total.item() / count


class _Training:
    """All steps of the optimizer up to one budget, by way of the rungs below it.

    The trunk's steps are the same for every budget. At a budget's branch the rate begins to decay. When it has, at a
    rung the loss is measured and all is put back to how it was at the branch.
    """

    def __init__(
        self,
        model: HybridLM,
        corpus: Corpus,
        settings: TrainingSettings,
        seed: int,
        tokens: int,
        checkpoints: Checkpoints | None,
        report: Report | None,
    ) -> None:
        self.model, self.corpus, self.settings, self.seed, self.tokens = model, corpus, settings, seed, tokens
        self.checkpoints, self.report = checkpoints if settings.schedule == "trunk" else None, report
        self.schedule = Schedule.of(settings, tokens)
        self.budgets = [rung for rung in settings.rungs if rung < tokens]
        self.per_step = settings.batch * settings.sequence
        self.shard = corpus.tokens("train")
        self.losses: list[float] = []  # of every step of the trunk, then of the last branch
        self.waiting: list[Tensor] = []  # those that are on the device: reading each would wait for it
        known = self.checkpoints.losses if self.checkpoints else {}
        self.rungs = {budget: known[budget] for budget in self.budgets if budget in known}
        self.trunk = self._kept_trunk()
        self.due = time.monotonic() + _APART  # when to keep the next checkpoint

    @property
    def curve(self) -> list[tuple[int, float]]:
        """(tokens, mean training loss since the last point), about fifty points."""
        interval = self._interval
        return [
            (end * self.per_step, math.fsum(self.losses[first:end]) / (end - first))
            for first in range(0, len(self.losses), interval)
            for end in [min(first + interval, len(self.losses))]
        ]

    @property
    def _interval(self) -> int:
        return math.ceil(self.schedule.steps / REPORTS)

    def fit(self, bounds: Bounds, began: float, after: Afterwards | None) -> None:
        """Computes no more at a time than there is room for. Raises TooLarge: see `fitted`."""
        steps = self.schedule.steps - (self.trunk.step if self.trunk else 0)
        steps += sum(rung.steps - rung.branch for rung in self._lacking)
        passes = 1 + len(self._lacking)
        self.settings = fitted(
            self.model, self.settings, bounds, steps=steps, validations=passes, began=began, after=after
        )

    def run(self) -> None:
        with training_step(self.model, self.settings, self.schedule.steps) as update:
            step = self._resumed(update)
            for tokens in self.budgets:
                rung = Schedule.of(self.settings, tokens)
                if tokens not in self.rungs:
                    step = self._go(update, self.schedule, step, rung.branch)
                    self._measure(update, rung, tokens)
            step = self._go(update, self.schedule, step, self.schedule.branch)
            if self.checkpoints:
                self._keep(step, update.state())
            self._decay(update, self.schedule, self.tokens)

    def _kept_trunk(self) -> Trunk | None:
        """Where it was left, unless beyond what is to be measured."""
        if not self.checkpoints:
            return None
        return self.checkpoints.load(min([*(rung.branch for rung in self._lacking), self.schedule.branch]))

    @property
    def _lacking(self) -> list[Schedule]:
        """The rungs that are to be measured."""
        return [Schedule.of(self.settings, budget) for budget in self.budgets if budget not in self.rungs]

    def _resumed(self, update: Step) -> int:
        """Takes up the trunk where it was left; returns the next step."""
        if self.trunk is None:
            return 0
        update.load(self.trunk.tensors)
        self.losses, step = self.trunk.losses, self.trunk.step
        self.trunk = None  # its tensors
        return step

    def _measure(self, update: Step, rung: Schedule, tokens: int) -> None:
        """The validation loss at a rung, from a branch of the trunk to which all is put back."""
        losses = list(self.losses)
        kept = {name: tensor.clone() for name, tensor in update.state().items()}
        if self.checkpoints:
            self._keep(rung.branch, kept)
        report, self.report = self.report, None
        self._decay(update, rung, tokens)
        loss = evaluate(self.model, self.corpus, self.settings, self.model.embedding.weight.device)
        if not math.isfinite(loss):
            raise Diverged(f"the validation loss is {loss} after {tokens} tokens")
        self.model.train()
        update.load(kept)
        self.losses, self.report, self.rungs[tokens] = losses, report, loss
        if self.checkpoints:
            self.checkpoints.save_loss(tokens, loss)

    def _decay(self, update: Step, schedule: Schedule, tokens: int) -> None:
        """The steps from the branch of a budget to its end, or from where that was left."""
        step = schedule.branch
        if self.checkpoints and (found := self.checkpoints.load(schedule.steps, tokens)):
            update.load(found.tensors)
            self.losses, step = found.losses, found.step
        self._go(update, schedule, step, schedule.steps, tokens)

    def _keep(self, step: int, state: dict[str, Tensor], decay: int | None = None) -> None:
        """Keeps where the trunk is after so many steps, or the decay of a budget of so many tokens."""
        assert self.checkpoints
        began = time.monotonic()
        self.checkpoints.save(Trunk(step, state, self.losses), decay)
        ended = time.monotonic()
        self.due = ended + max(_APART, _TIMES * (ended - began))

    def _go(self, update: Step, schedule: Schedule, first: int, last: int, decay: int | None = None) -> int:
        """The steps from `first` up to `last`, which is returned: of the trunk, or of the decay of a budget."""
        with phase("steps"):
            self._steps(update, schedule, first, last, decay)
        return max(first, last)

    def _steps(self, update: Step, schedule: Schedule, first: int, last: int, decay: int | None) -> None:
        for step in range(first, last):
            windows = batch(self.shard, self.seed, step, self.settings.batch, self.settings.sequence)
            self.waiting.append(update(windows, schedule.rate(step)))
            if (step + 1) % self._interval == 0 or step + 1 == schedule.steps:
                self._read()
                if self.report:
                    self.report(*self.curve[-1])
            if self.checkpoints and step + 1 < last and time.monotonic() >= self.due:
                self._read()
                self._keep(step + 1, update.state(), decay)
        self._read()

    def _read(self) -> None:
        """Fetches the losses that wait on the device. Raises `Diverged` with the first that is not finite."""
        if not self.waiting:
            return
        values = torch.stack(self.waiting).float().tolist()
        self.waiting = []
        for value in values:
            self.losses.append(value)
            if not math.isfinite(value):
                raise Diverged(f"the training loss is {value} at step {len(self.losses)}")


@contextmanager
def repeatable(device: torch.device, seed: int) -> Iterator[None]:
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
