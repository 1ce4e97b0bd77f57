"""`nfsearch bench candidate`: where the time of one candidate of the training proxy goes, from job to score."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from nfsearch.bench.flops import bf16_peak, training_flops
from nfsearch.bench.race import release
from nfsearch.bench.schema import Candidate, Kernel, Pass
from nfsearch.latency_lut.device import device_name
from nfsearch.ops import HybridLM
from nfsearch.proxies import Job
from nfsearch.proxies.data import batch
from nfsearch.proxies.step import training_step
from nfsearch.proxies.trainer import repeatable
from nfsearch.proxies.training import TrainingProxy
from nfsearch.proxies.twin import narrowed
from nfsearch.space import Architecture
from nfsearch.support.notes import listening
from nfsearch.support.phases import REST, watched

_WARM = 3  # steps before the one that is profiled
_MOST = 25  # kernels listed


def process_age() -> float:
    """Seconds since this process began."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def bench_candidate(
    architecture: Architecture, proxy: TrainingProxy, before: Mapping[str, float], profiled: bool
) -> Candidate:
    """Trains the architecture as a search does, twice in this process: the first time kernels are compiled and checked.
    Where that is a narrowed twin, all that is told is of the twin.

    `before` holds the seconds of phases that only the first candidate of a process has.
    """
    settings = proxy.settings
    trained = narrowed(architecture, settings.narrow, proxy.vocab)
    flops = training_flops(trained, settings.sequence)
    passes = [_pass("cold", architecture, proxy, flops, before), _pass("warm", architecture, proxy, flops, {})]
    return Candidate(
        notation=trained.notation,
        width=trained.width,
        vocab=trained.vocab,
        parameters=trained.parameters,
        batch=settings.batch,
        sequence=settings.sequence,
        flops_per_token=flops,
        passes=passes,
        kernels=_kernels(trained, proxy) if profiled else [],
    )


def _pass(
    name: str, architecture: Architecture, proxy: TrainingProxy, flops: float, before: Mapping[str, float]
) -> Pass:
    on_cuda = proxy.device == "cuda"
    release(proxy.device)
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    with listening() as said, watched(_wait(proxy.device)) as watch:
        found = proxy.evaluate(Job(architecture, proxy.fidelity), lambda tokens, loss: None)
    phases = {**before, **watch.seconds}
    phases[REST] = phases.pop(REST)  # the last
    steps = found.tokens // (proxy.settings.batch * proxy.settings.sequence)
    rate = found.tokens * (1 - watch.times["first steps"] / steps) / phases["steps"]
    peak = bf16_peak(device_name(proxy.device))
    return Pass(
        name=name,
        phases=phases,
        seconds=sum(phases.values()),
        tokens=found.tokens,
        tokens_per_s=rate,
        mfu_percent=100 * rate * flops / peak if peak else None,
        memory_gb=torch.cuda.max_memory_allocated() / 1e9 if on_cuda else None,
        loss=found.metrics["loss"].value,
        notes=list(said),
    )


def _kernels(architecture: Architecture, proxy: TrainingProxy) -> list[Kernel]:
    """What the device spends one step on that the host launches, by total time; on a CPU the operations."""
    settings, device = proxy.settings, torch.device(proxy.device)
    windows = batch(proxy.corpus.tokens("train"), 0, 0, settings.batch, settings.sequence)
    on_cuda = device.type == "cuda"
    with repeatable(device, 0), training_step(HybridLM(architecture).to(device), settings, 1) as step:
        for _ in range(_WARM):
            step(windows, settings.learning_rate)
        _wait(device.type)()
        with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as seen:
            step(windows, settings.learning_rate)
            _wait(device.type)()
    wanted = DeviceType.CUDA if on_cuda else DeviceType.CPU
    spent = [
        (event.self_device_time_total if on_cuda else event.self_cpu_time_total, event.count, event.key)
        for event in seen.key_averages()
        # The profiler marks an optimizer's step on the device too, as if it were a kernel that lasts as long.
        if event.device_type == wanted and not event.key.startswith("Optimizer.")
    ]
    total = sum(us for us, _, _ in spent)
    found = [Kernel(name=name, calls=calls, us=us, percent=100 * us / total) for us, calls, name in spent]
    found.sort(key=lambda kernel: -kernel.us)
    others = found[_MOST:]
    if others:
        us = sum(kernel.us for kernel in others)
        name = f"{len(others)} others"
        rest = Kernel(name=name, calls=sum(kernel.calls for kernel in others), us=us, percent=100 * us / total)
        return [*found[:_MOST], rest]
    return found


def _wait(kind: str) -> Callable[[], object]:
    return torch.cuda.synchronize if kind == "cuda" else lambda: None
