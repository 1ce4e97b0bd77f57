"""Whole models as they are timed: for the rows of a table, and for the check of its estimates."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nfsearch.latency_lut.timing import Bounds, Samples, prepared, take
from nfsearch.latency_lut.workload import Span
from nfsearch.ops.model import HybridLM
from nfsearch.space.architecture import Architecture


def build_model(architecture: Architecture, dtype: str, kind: str) -> HybridLM:
    """Freshly initialised, on a device of this kind."""
    with torch.device(kind):
        return HybridLM(architecture).to(getattr(torch, dtype)).eval()


@dataclass(frozen=True)
class Timed:
    """Samples of each model's pass, and the most bytes that the last model's pass took besides what was there before,
    the model's own weights and state included; None on a CPU, where that is not known."""

    samples: Samples
    peak: float | None
    passes: Sequence[Callable[[], object]]  # which hold what `last` works on
    last: Callable[[], object]  # the last model's pass, to be run again


@torch.inference_mode()
def time_models(models: Sequence[HybridLM], span: Span, weights: Sequence[float], kind: str, within: Bounds) -> Timed:
    """Times the first pass of a span on each of the models, in turn, until the sum with these weights is known well."""
    peak, passes, runs = None, [], []
    for model in models:
        before = torch.cuda.memory_allocated() if kind == "cuda" else 0  # models, and libraries' own workspaces
        run = one_pass(model, span, kind)
        passes.append(run)  # a graph does not hold what it works on
        if kind == "cuda":
            run()  # compiles and tunes
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            run()
            torch.cuda.synchronize()
            held = sum(parameter.nbytes for parameter in model.parameters())
            peak = float(torch.cuda.max_memory_allocated() - before + held)
        runs.append(prepared(run, kind))
    return Timed(take(runs, weights, kind, within), peak, passes, runs[-1])


def one_pass(model: HybridLM, span: Span, kind: str) -> Callable[[], object]:
    """The first pass of a span, which holds what it works on."""
    vocab, meta = model.architecture.vocab, model.architecture.meta_tokens
    decode = span.phase == "decode"
    state = model.init_state(span.batch, span.first + decode)
    if decode:
        for held in state:
            _fill(held)
        tokens = torch.randint(vocab, (span.batch,), device=kind)
        position = torch.tensor(span.first + meta, device=kind)
        return lambda: model.step(tokens, state, position)
    prompt = torch.randint(vocab, (span.batch, span.first), device=kind)
    return lambda: model.prefill(prompt, state)


def _fill(state: dict[str, Tensor]) -> None:
    """Random contents: a state of zeros costs less power, and so less time, than one in use."""
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.normal_(std=0.1)


def clean_up(kind: str) -> None:
    """Gives a GPU's memory back that models which are gone held. On a CPU nothing is to be done: a model's memory goes
    with the last reference to it, and looking for circles costs a tenth of a second a time."""
    if kind == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory is what lacked, also where the end of a failed capture raised another error over that."""
    if error is None:
        return False
    return any(text in str(error) for text in ("out of memory", "allocate memory")) or is_out_of_memory(
        error.__context__
    )
