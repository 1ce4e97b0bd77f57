"""The short training run that a candidate is scored by on a synthetic task."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nfsearch.ops.model import HybridLM
from nfsearch.proxies.job import Evaluation, Report
from nfsearch.proxies.schedule import Schedule
from nfsearch.proxies.step import training_step
from nfsearch.proxies.tasks import UNASKED, Task
from nfsearch.proxies.trainer import REPORTS, Diverged, repeatable
from nfsearch.space import Architecture
from nfsearch.support.metrics import Z_95, Measurement
from nfsearch.support.notes import note

_TEST_SEED = 20_260_101  # of the sequences that all candidates are scored on; seeds of jobs are small


class StandIn(HybridLM):
    """A hybrid language model that is asked at some positions of a sequence only; where a task says so, a decoder tells
    the answers apart that are all read at the same position."""

    def __init__(self, architecture: Architecture, task: Task) -> None:
        super().__init__(architecture)
        self._length = task.settings.sequence
        self.decoder = _Decoder(architecture.width, task.settings.asked) if task.decodes else None

    def asked(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [rows * asked, vocab] and answers [rows * asked] of packed rows [rows, sequence + 2 asked]; bf16
        autocast on CUDA."""
        tokens, rest = rows[:, : self._length], rows[:, self._length :]
        places, answers = rest.chunk(2, dim=1)
        with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.is_cuda):
            hidden = self.hidden(tokens).flatten(0, 1)
            starts = torch.arange(len(rows), device=rows.device)[:, None] * self._length
            found = hidden[(places + starts).flatten()]
            if self.decoder is not None:
                found = self.decoder(found.unflatten(0, answers.shape)).flatten(0, 1)
            return self.head(found), answers.flatten()


class _Decoder(nn.Module):
    """What stood at each place, of features [..., asked, width] that are the same for all of them."""

    def __init__(self, width: int, asked: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(asked, width))
        self.inner, self.outer = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, features: Tensor) -> Tensor:
        found: Tensor = self.outer(F.gelu(self.inner(features + self.places)))
        return found


def _loss(model: HybridLM, rows: Tensor) -> Tensor:
    assert isinstance(model, StandIn)
    logits, answers = model.asked(rows)
    return F.cross_entropy(logits, answers, ignore_index=UNASKED)


def train_on_task(
    architecture: Architecture, task: Task, *, seed: int, device: torch.device | str, report: Report | None = None
) -> Evaluation:
    """Trains a new model of the architecture on sequences that are drawn anew for every step, and measures the share of
    answers that it gets wrong on others, which are the same for all candidates; its error bar is the half width of
    Wilson's 95 % interval, each answer taken for itself.

    `seed` decides the weights and the sequences; the caller's random state is left alone. The host waits for the device
    at reports only, about every 2 % of the run. That a model does no better than guessing is noted. Raises `Diverged`
    when a loss is not finite.
    """
    started = time.perf_counter()
    device, recipe = torch.device(device), task.settings.recipe
    schedule = Schedule.of(recipe, recipe.tokens)
    interval, per_step = math.ceil(schedule.steps / REPORTS), recipe.batch * recipe.sequence
    waiting: list[Tensor] = []
    curve: list[tuple[int, float]] = []
    with repeatable(device, seed):
        model = StandIn(architecture, task).to(device)
        generator = torch.Generator(device).manual_seed(seed)
        columns = recipe.sequence + 2 * task.settings.asked
        with training_step(model, recipe, schedule.steps, _loss, columns) as update:
            for step in range(schedule.steps):
                waiting.append(update(task.draw(recipe.batch, generator), schedule.rate(step)))
                if (step + 1) % interval == 0 or step + 1 == schedule.steps:
                    loss = torch.stack(waiting).float().mean().item()
                    waiting = []
                    if not math.isfinite(loss):
                        raise Diverged(f"the training loss is {loss} at step {step + 1}")
                    curve.append(((step + 1) * per_step, loss))
                    if report:
                        report(*curve[-1])
        found = _score(model, task, device)
    guessing = 1 - 1 / task.settings.answers
    if 0 < guessing <= found.value + found.error:
        remedy = "more `examples`, or a smaller task, would tell more"
        note(f"{task.name}: no better than guessing ({guessing:.3g} wrong); {remedy}")
    seconds = time.perf_counter() - started
    return Evaluation({task.name: found}, schedule.steps * per_step, seconds, tuple(curve))


@torch.no_grad()
def _score(model: StandIn, task: Task, device: torch.device) -> Measurement:
    generator = torch.Generator(device).manual_seed(_TEST_SEED)
    wrong = asked = torch.zeros((), dtype=torch.int64, device=device)
    model.eval()
    left = task.settings.test
    while left > 0:
        logits, answers = model.asked(task.draw(min(left, task.settings.batch), generator))
        counts = answers != UNASKED
        wrong = wrong + (counts & (logits.argmax(dim=1) != answers)).sum()
        asked = asked + counts.sum()
        left -= task.settings.batch
    return share(int(wrong), int(asked))


def share(wrong: int, asked: int) -> Measurement:
    """The share of so many that are wrong, with half the width of Wilson's 95 % interval, which is never zero."""
    p, z2 = wrong / asked, Z_95 * Z_95
    half = Z_95 / (1 + z2 / asked) * math.sqrt(p * (1 - p) / asked + z2 / (4 * asked * asked))
    return Measurement(p, half)
