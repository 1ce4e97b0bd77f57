"""What a training will take of a GPU's memory and of time, known before it starts.

Its step is rehearsed, as it will run, on as many tokens as keep the device busy; the figures are carried on to the
whole step, and to all steps.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from nfsearch.ops.model import HybridLM
from nfsearch.proxies.bounds import Bounds, TooLarge, flops_of_weights
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.step import BEFORE_CAPTURE, mean_loss, training_step, upload
from nfsearch.space import Architecture
from nfsearch.support.metrics import Measurement
from nfsearch.support.notes import note
from nfsearch.support.terminal import counted, duration

_REHEARSED = {"cuda": 2**14, "cpu": 2**8}  # tokens at a time that keep a device as busy as more would
_SHORTEST = 16  # tokens of one sequence, the least that is tried
_WARM = BEFORE_CAPTURE + 1  # calls until a step is a graph
_ROWS, _MOMENT = 3, 0.05  # rows of calls that are then timed, and seconds that a row takes at least, about
_ROOM = 0.95  # of the memory that is free: the rest goes to what PyTorch does not count, and to gaps
# A training is not rehearsed where it takes under half the memory and all of the time allowed even if a layer kept so
# many bytes for each token and value of the width (those of nfsearch keep 20 to 120), and if the device did no more
# than so many FLOP/s (a hundredth of its best). So candidates of 50M parameters on 10M tokens lose no second to it.
_KEPT, _SLOW = 256, {"cuda": 1e13, "cpu": 2e9}
_READ = 8  # bytes, likewise, that reading without gradients takes for each token and entry of the vocabulary


class Afterwards(Protocol):
    """What a training is followed by: the trained model reads windows of `length` tokens, without gradients."""

    @property
    def length(self) -> int: ...

    def at_once(self, settings: TrainingSettings) -> int:
        """How many windows are read at a time."""

    def read(self, model: HybridLM, windows: np.ndarray) -> np.ndarray:
        """What the model says of int64 [windows, length + 1]; one number for each."""

    def measure(self, model: HybridLM, settings: TrainingSettings) -> Mapping[str, Measurement]:
        """Metrics of the model, by what it says of all windows."""


@dataclass(frozen=True)
class Needs:
    """Of a training whose steps compute so many sequences at a time, and of what follows it: bytes of the GPU's memory
    that it cannot do without (0 on a CPU; see `taken`), seconds, and the bytes for what follows alone."""

    micro_batch: int
    memory: float
    seconds: float
    afterwards: float = 0.0


@dataclass(frozen=True)
class _Rehearsal:
    tokens: int  # at a time
    parts: int  # of the step, one after the other
    allocated: float  # bytes, at the peak of a step
    memory: float  # bytes that steps cannot do without: see `taken`
    seconds: float  # of a step
    beside: float  # bytes that as many tokens without gradients take, beside what steps keep
    validation: float  # seconds for them
    state: int  # bytes of the weights and of what the optimizers keep


def require_room(architecture: Architecture, settings: TrainingSettings, device: torch.device, bounds: Bounds) -> None:
    """Raises TooLarge where even the weights with what belongs to them are too large for the GPU."""
    needed, there = _least(architecture, settings), memory_there(device, bounds.share)
    if needed > _ROOM * there:
        raise TooLarge(
            f"{architecture}: weights, gradients and what {settings.optimizer} keeps need {needed / 1e9:.1f} GB of GPU "
            f"memory, and {there / 1e9:.1f} GB are there: lower space.limits.params, or set proxy.narrow"
        )


def fitted(
    model: HybridLM,
    settings: TrainingSettings,
    bounds: Bounds,
    *,
    steps: int,
    validations: int,
    began: float,
    after: Afterwards | None = None,
) -> TrainingSettings:
    """The settings with a micro batch that the device has room for, for a training of so many steps and passes over the
    validation set that began at `began` of `time.perf_counter`, and for what follows it; the model's weights are as
    before.

    Raises TooLarge where not one sequence fits (or not the `micro_batch` that is asked for), and where the training
    would take longer than it may.
    """
    device, architecture = model.embedding.weight.device, model.architecture
    there = memory_there(device, bounds.share)
    if _small(architecture, settings, device, there, bounds.seconds, steps, after):
        return settings
    found = predict(model, settings, there, steps=steps, validations=validations, after=after)
    wanted = settings.micro_batch or settings.batch
    if after and found.afterwards > _ROOM * there:
        what = counted(after.at_once(_dividing(settings, found.micro_batch)), "window")
        remedies = ["proxy.micro_batch: null"] * bool(settings.micro_batch) + ["a smaller proxy.context"]
        raise TooLarge(
            f"{architecture}: reading {what} of {after.length} tokens at a time needs about "
            f"{found.afterwards / 1e9:.1f} GB of GPU memory, and {there / 1e9:.1f} GB are there: set "
            f"{' or '.join(remedies)}"
        )
    if found.memory > _ROOM * there:
        what = f"{counted(found.micro_batch, 'sequence')} of {settings.sequence} tokens"
        remedies = ["proxy.micro_batch: null"] * bool(settings.micro_batch)
        remedies += ["proxy.recompute: true"] * (not settings.recompute) + ["a smaller proxy.sequence"]
        raise TooLarge(
            f"{architecture}: training on {what} at a time needs about {found.memory / 1e9:.1f} GB of GPU memory, and "
            f"{there / 1e9:.1f} GB are there: set {' or '.join(remedies)}"
        )
    seconds = time.perf_counter() - began + found.seconds
    if seconds > bounds.seconds:
        raise TooLarge(
            f"{architecture} would take about {seconds:,.0f} s ({duration(seconds)}) for {steps:,} steps here, and "
            f"workers.timeout_s is {bounds.seconds:,g}: raise it, or set fewer proxy.tokens"
        )
    if found.micro_batch < wanted:
        note(f"steps were computed {found.micro_batch} of {wanted} sequences at a time, for want of GPU memory")
    return _dividing(settings, found.micro_batch)


def predict(
    model: HybridLM,
    settings: TrainingSettings,
    there: float,
    *,
    steps: int,
    validations: int,
    after: Afterwards | None = None,
) -> Needs:
    """What the training and what follows it will take from now on, with the largest micro batch that `there` bytes have
    room for: the whole batch, the half, a quarter ...; with one sequence, or what the settings say, where none has. The
    model's weights are as before. Raises TooLarge where nothing at all fits."""
    before = {name: parameter.detach().cpu().clone() for name, parameter in model.named_parameters()}
    try:
        found = _rehearsals(model, settings, steps)
        read = _readings(model, settings, after) if after and there < math.inf else []
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(before[name])
    micro = settings.micro_batch or settings.batch

    def needed(micro: int) -> tuple[float, float]:
        tokens = micro * settings.sequence
        training = _memory(found, tokens) + (_beside(found, tokens, settings) if validations > 1 else 0.0)
        return training, _on_line(read, after.at_once(_dividing(settings, micro))) if after and read else 0.0

    while max(memory := needed(micro)) > _ROOM * there:
        if micro == 1 or settings.micro_batch:
            break
        micro = math.ceil(micro / 2)
    largest = found[0]
    validation = settings.validation_tokens * largest.validation / largest.tokens
    seconds = steps * _seconds(found, settings.batch * settings.sequence) + validations * validation
    return Needs(micro, max(memory), seconds, memory[1])


def memory_there(device: torch.device, share: float = 1.0) -> float:
    """Bytes of a GPU that this process can have, those included that it has; a CPU's are not counted."""
    if device.type != "cuda":
        return math.inf
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return min(free + torch.cuda.memory_reserved(device), share * total)


def _least(architecture: Architecture, settings: TrainingSettings) -> float:
    """Bytes of weights and gradients, and of Muon's momenta, or the two moments of AdamW, in float32."""
    return architecture.parameters * (12.0 if settings.optimizer == "muon" else 16.0)


def _small(
    architecture: Architecture,
    settings: TrainingSettings,
    device: torch.device,
    there: float,
    seconds: float,
    steps: int,
    after: Afterwards | None,
) -> bool:
    at_once = (settings.micro_batch or settings.batch) * settings.sequence
    each = len(architecture.layers) * architecture.width * _KEPT
    if after:
        at_once, each = max(at_once, after.at_once(settings) * after.length), each + architecture.vocab * _READ
    kept = at_once * each
    slowest = flops_of_weights(architecture.parameters, steps * settings.batch * settings.sequence) / _SLOW[device.type]
    return 2 * (_least(architecture, settings) + kept) < there and slowest < seconds


def _dividing(settings: TrainingSettings, micro: int) -> TrainingSettings:
    return settings.model_copy(update={"micro_batch": micro})


# --- rehearsing ------------------------------------------------------------------------------------------------------


def _rehearsals(model: HybridLM, settings: TrainingSettings, steps: int) -> list[_Rehearsal]:
    """The whole step, if it is small enough to be rehearsed and fits; else the two largest parts that do, the larger
    one first. Raises TooLarge where none does."""
    found: list[_Rehearsal] = []
    for sequences, length in _sizes(settings, model.embedding.weight.device.type):
        whole = sequences == settings.batch and length == settings.sequence
        one = _rehearse(model, settings, sequences, length, parts=1 if whole else 2, steps=steps)
        found += [one] if one else []
        if len(found) == 2 or (one and whole):
            break
    if not found:
        raise TooLarge(f"{model.architecture}: the GPU has no room to train it on {_SHORTEST} tokens: set proxy.narrow")
    return found


def _sizes(settings: TrainingSettings, kind: str) -> Iterator[tuple[int, int]]:
    """(sequences, tokens of each) to try, the largest first."""
    sequences = min(settings.micro_batch or settings.batch, max(1, _REHEARSED[kind] // settings.sequence))
    while sequences:
        yield sequences, settings.sequence
        sequences //= 2
    length = settings.sequence // 2
    while length >= _SHORTEST:
        yield 1, length
        length //= 2


def _rehearse(
    model: HybridLM, settings: TrainingSettings, sequences: int, length: int, *, parts: int, steps: int
) -> _Rehearsal | None:
    """None where the device's memory is too small for it."""
    sizes = {"batch": parts * sequences, "micro_batch": sequences, "sequence": length}
    _empty(model.embedding.weight.device)
    with suppress(torch.OutOfMemoryError):  # which holds what was computed until this block is left
        return _measured(model, settings.model_copy(update=sizes), parts, steps)
    _empty(model.embedding.weight.device)
    return None


def _measured(model: HybridLM, settings: TrainingSettings, parts: int, steps: int) -> _Rehearsal:
    device, sequences = model.embedding.weight.device, settings.batch // parts
    tokens = np.random.default_rng(0).integers(model.architecture.vocab, size=(settings.batch, settings.sequence + 1))
    with training_step(model, settings, steps) as update:

        def validate() -> None:
            with torch.no_grad():
                mean_loss(model, upload(tokens[:sequences], device))

        update(tokens, 0.0)
        _empty(device)  # what the first use of a kernel takes to check it is nothing that training needs
        for _ in range(_WARM - 1 if device.type == "cuda" else 0):
            update(tokens, 0.0)
        seconds = _timed(lambda: update(tokens, 0.0), device)
        allocated, memory = _allocated(device), taken(device)
        model.eval()
        validate()
        _empty(device)
        kept = _allocated(device)
        validation = _timed(validate, device)
        beside = _allocated(device) - kept
        state = sum(tensor.nbytes for tensor in update.state().values())
    return _Rehearsal(sequences * settings.sequence, parts, allocated, memory, seconds, beside, validation, state)


def _readings(model: HybridLM, settings: TrainingSettings, after: Afterwards) -> list[tuple[int, float]]:
    """(windows at a time, bytes at the peak of reading them), the largest two that are small enough to be rehearsed and
    fit, or one. Raises TooLarge where none does."""
    device = model.embedding.weight.device
    most = max(1, min(after.at_once(settings), _REHEARSED[device.type] // after.length))
    found: list[tuple[int, float]] = []
    while most and len(found) < 2:
        _empty(device)
        with suppress(torch.OutOfMemoryError):
            found.append((most, _read(model, after, most)))
        most //= 2
    _empty(device)
    if not found:
        raise TooLarge(
            f"{model.architecture}: the GPU has no room to read a window of {after.length} tokens: set a smaller "
            "proxy.context"
        )
    return found


def _read(model: HybridLM, after: Afterwards, windows: int) -> float:
    """Bytes at the peak of reading so many, once what is used first has been checked."""
    device = model.embedding.weight.device
    tokens = np.random.default_rng(0).integers(model.architecture.vocab, size=(windows, after.length + 1))
    after.read(model, tokens[:1])
    _empty(device)
    after.read(model, tokens)
    return _allocated(device)


def _timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run where several follow each other, as in training. The median of a few rows of them, as one that
    something else on the machine disturbs takes far longer."""
    count = math.ceil(_MOMENT / _row(run, 1, device))
    return statistics.median(_row(run, count, device) for _ in range(_ROWS))


def _row(run: Callable[[], object], count: int, device: torch.device) -> float:
    """Seconds of each of so many runs, which the host waits for when all are launched."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        run()
    _wait(device)
    return (time.perf_counter() - began) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _empty(device: torch.device) -> None:
    if device.type == "cuda":  # no other device's memory is counted
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def taken(device: torch.device) -> float:
    """Bytes that could not be done without since `_empty`: the most that was allocated at a time, or what is still held
    once all that is unused is given back, a graph's memory included. That is not counted as allocated, though nothing
    else can have it. What is reserved beyond is kept for later, and PyTorch gives it back where memory is short."""
    allocated = _allocated(device)
    if device.type != "cuda":
        return allocated
    torch.cuda.empty_cache()
    return max(allocated, torch.cuda.memory_reserved(device))


def _allocated(device: torch.device) -> float:
    """The most bytes at a time since `_empty`."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0.0


# --- carrying on -----------------------------------------------------------------------------------------------------


def _memory(found: list[_Rehearsal], tokens: int) -> float:
    """Bytes that steps of so many tokens at a time cannot do without: a line through what was allocated, and on top of
    it as much as in the largest rehearsal for the gaps between what a graph holds: half a gigabyte to two, of which
    the tokens decide little."""
    gaps = found[0].memory - found[0].allocated
    return gaps + _on_line([(one.tokens, one.allocated) for one in found], tokens)


def _beside(found: list[_Rehearsal], tokens: int, settings: TrainingSettings) -> float:
    """Bytes that a rung takes beside what steps keep: a copy of all that has to be put back after it, and its
    validation, so many tokens at a time."""
    at_once = min(tokens, settings.validation_tokens)
    return found[0].state + _on_line([(one.tokens, one.beside) for one in found], at_once)


def _seconds(found: list[_Rehearsal], tokens: int) -> float:
    """Seconds of a step of so many tokens: those of the optimizer once, the rest for each token."""
    return _on_line([(one.parts * one.tokens, one.seconds) for one in found], tokens)


def _on_line(points: list[tuple[int, float]], at: int) -> float:
    """The value there of the line through two points, the farther one first, that does not fall; or of one through
    zero, where there is but one."""
    (far, value), (near, smaller) = points if len(points) == 2 else (points[0], (0, 0.0))
    if at == far:
        return value
    return value + max(0.0, value - smaller) / (far - near) * (at - far)
