"""A step of training; on CUDA all of it is one CUDA graph, because launching its kernels takes longer than they run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from nfsearch.ops.head_loss import head_loss
from nfsearch.ops.model import HybridLM
from nfsearch.proxies.optimizers import Optimizers
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.weight_norm import WeightNorm
from nfsearch.support.errors import typed_line
from nfsearch.support.notes import note
from nfsearch.support.phases import phase

BEFORE_CAPTURE = 3  # steps in which kernels are compiled and checked, and libraries and AdamW make what they keep
_FEWEST = 10  # steps in a run that is worth a capture
Loss = Callable[[HybridLM, Tensor], Tensor]  # of a model on windows int64 [sequences, columns]: a mean
_WEIGHTS = "model."  # before the names of weights among those of a state


class Step:
    """Loss, its gradients, clipped, a step of the optimizers and the projection of the weights.

    The first `eager` calls launch all of it; the next one captures it, which executes nothing, and then replays it, as
    all later ones do. Where it cannot be captured, that is logged and all calls launch. The updates are the same.
    """

    def __init__(
        self,
        model: HybridLM,
        settings: TrainingSettings,
        eager: float,
        loss: Loss | None = None,
        columns: int | None = None,
    ) -> None:
        device = model.embedding.weight.device
        self._model, self._clip, self._eager, self._loss = model, settings.clip, eager, loss or mean_loss
        shape = settings.batch, columns or settings.sequence + 1
        self._windows = torch.zeros(shape, dtype=torch.int64, device=device)
        self._optimizers = Optimizers(model, settings)
        self._micro = settings.micro_batch or settings.batch
        self._project = WeightNorm(model, settings.output_scale) if settings.weight_norm else None
        self._captured: tuple[torch.cuda.CUDAGraph, Tensor] | None = None  # and the loss that it writes
        model.recompute = settings.recompute
        model.train()
        if self._project:
            self._project()

    def __call__(self, windows: np.ndarray | Tensor, rate: float) -> Tensor:
        """The loss before the update, on the device: windows int64 [batch, sequence + 1], or [batch, columns] on the
        device already, and the learning rate."""
        self._windows.copy_(upload(windows, self._windows.device))
        self._optimizers.set_rate(rate)
        if self._eager == 0 and not self._captured:
            with phase("capture"):
                self._capture()
        if self._captured:
            graph, loss = self._captured
            graph.replay()
            return loss.clone()
        if self._eager == math.inf:
            return self._update()
        self._eager -= 1
        with phase("first steps"):
            return self._update()

    def state(self) -> dict[str, Tensor]:
        """Weights and what the optimizers keep, by name, as they are and not copied."""
        weights = {f"{_WEIGHTS}{name}": parameter.detach() for name, parameter in self._model.named_parameters()}
        return weights | self._optimizers.state()

    @torch.no_grad()
    def load(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state` gave earlier, in place."""
        for name, parameter in self._model.named_parameters():
            parameter.copy_(state[f"{_WEIGHTS}{name}"])
        self._optimizers.load(state)

    def close(self) -> None:
        """Frees the graph with its memory, in which the gradients lie."""
        self._optimizers.zero_grad()
        if self._captured:
            self._captured[0].reset()
            self._captured = None
            torch.cuda.empty_cache()  # the memory of a graph serves nothing else before this

    def _update(self) -> Tensor:
        self._optimizers.zero_grad()
        losses = []
        for part in self._windows.split(self._micro):
            loss = self._loss(self._model, part) * (len(part) / len(self._windows))
            loss.backward()
            losses.append(loss.detach())
        nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
        self._optimizers.step()
        if self._project:
            self._project()
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _capture(self) -> None:
        graph, pool, stream = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle(), torch.cuda.current_stream()
        self._optimizers.zero_grad()  # so that the graph makes its own
        self._optimizers.capturable(True)
        refusal = called_off = ""
        try:
            with torch.cuda.graph(graph, pool, stream):
                try:
                    with _waiting_raises():
                        loss = self._update()
                except Exception as error:
                    refusal = typed_line(error)
        except Exception as error:
            called_off = typed_line(error)
        if not refusal and not called_off:
            self._captured = graph, loss
            return
        self._eager = math.inf
        self._optimizers.zero_grad()  # those that were never computed
        self._optimizers.capturable(False)
        if called_off:
            _end_capture(pool, stream)
        reason = refusal or called_off
        note(f"a training step was launched operation by operation, as it could not be one CUDA graph: {reason}")


@contextmanager
def training_step(
    model: HybridLM,
    settings: TrainingSettings,
    steps: int,
    loss: Loss | None = None,
    columns: int | None = None,
) -> Iterator[Step]:
    """The step of a run of `steps` steps, on windows of `columns` tokens whose loss is `loss`; by default of the next
    token. On CUDA what is inside runs on a stream of its own, which a capture needs."""
    device = model.embedding.weight.device
    eager = BEFORE_CAPTURE if device.type == "cuda" and steps >= _FEWEST else math.inf
    with own_stream(device):
        with phase("model"):
            step = Step(model, settings, eager, loss, columns)
        try:
            yield step
        finally:
            step.close()


def mean_loss(model: HybridLM, windows: Tensor) -> Tensor:
    """windows int64 [batch, sequence + 1]: inputs, and the same shifted by one as targets. bf16 autocast on CUDA, where
    training takes the gradients of the head along."""
    on_cuda, tokens, targets = windows.device.type == "cuda", windows[:, :-1], windows[:, 1:]
    with torch.autocast(windows.device.type, torch.bfloat16, enabled=on_cuda):
        if on_cuda and torch.is_grad_enabled() and not model.architecture.head_norm:
            hidden = model.hidden(tokens).flatten(0, 1)
            return head_loss(hidden, model.output.weight, targets.flatten(), torch.bfloat16)
        return model.loss(tokens, targets)


def upload(windows: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """On the device, for which the host does not wait: it would, if it copied from memory that is not pinned. A tensor
    is there already."""
    if isinstance(windows, Tensor):
        return windows
    if device.type != "cuda":
        return torch.from_numpy(windows)
    pinned = torch.empty(windows.shape, dtype=torch.int64, pin_memory=True)
    np.copyto(pinned.numpy(), windows)  # torch would wake all its threads to copy, which a busy host makes a step late
    return pinned.to(device, non_blocking=True)


# --- capturing -------------------------------------------------------------------------------------------------------


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    if device.type != "cuda":
        yield
        return
    stream, outside = _stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outside.wait_stream(stream)


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all runs of a process: what libraries keep for each stream, they keep for good."""
    return torch.cuda.Stream(device)


@contextmanager
def _waiting_raises() -> Iterator[None]:
    """What waits for the device raises before it does: a capture that it reached would be called off by CUDA."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode does not see all that waits
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _end_capture(pool: tuple[int, int], stream: torch.cuda.Stream) -> None:
    """Ends for torch a capture that CUDA has called off.

    `CUDAGraph.capture_end` then raises before it tells the allocator, which would refuse to empty its cache ever after,
    and the random generator, which would refuse to draw until another capture has ended.
    """
    device = stream.device.index
    with suppress(RuntimeError):  # raised where `capture_end` had told it already
        torch._C._cuda_endAllocateToPool(device, pool)
        torch._C._cuda_releasePool(device, pool)
    with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):  # a good one
        torch.zeros((), device=stream.device)
