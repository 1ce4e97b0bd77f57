"""Contenders: each is checked against a reference first, then those that are right are timed in turn."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from nfsearch.bench.flops import bf16_peak
from nfsearch.bench.schema import Bandwidth, Comparison, Entry
from nfsearch.latency_lut.device import device_name, free_memory, provenance
from nfsearch.latency_lut.timing import CPU, CUDA, Bounds, Run, prepared, take
from nfsearch.support.errors import typed_line
from nfsearch.support.terminal import say

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 3e-2}
_BOUNDS: Mapping[str, Bounds] = {
    "cuda": replace(CUDA, warm_up=0.1, least=20, seconds=0.5, target=0.002),
    "cpu": replace(CPU, keep=1.0, least=5, seconds=0.05),  # a dry run
}
_COPY_BYTES = {"cuda": 2 << 30, "cpu": 64 << 20}  # working set of the copy: source and destination together
_WORKING_SET = {"cuda": 500e6, "cpu": 1e6}  # bytes that a chain goes through: several times an H200's 60 MB of L2
_LONGEST = 64  # links of a chain
COMPILE_MODES = {"default": "default", "max-autotune": "max-autotune-no-cudagraphs"}  # we capture graphs ourselves
CompileMode = Literal["none", "default", "max-autotune"]
Role = Literal["ours", "baseline"]


class Absent(Exception):
    """A contender cannot run here; the message says why."""


@dataclass(frozen=True)
class Setup:
    """Where and how a suite runs."""

    kind: str  # "cuda" or "cpu"
    dtype: torch.dtype
    compile: CompileMode

    def compiled(
        self, function: Callable[..., Any], what: str = "torch.compile", *, breaks: bool = False
    ) -> Callable[..., Any]:
        """Raises Absent if compilation is switched off. Unless the function may have `breaks`, where it calls what
        cannot be compiled, anything that would silently run uncompiled raises later."""
        if self.compile == "none":
            raise Absent(f"{what} is switched off (--compile none)")
        return torch.compile(function, fullgraph=not breaks, dynamic=False, mode=COMPILE_MODES[self.compile])

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Contender:
    """One implementation. `check` runs it once on fresh state and gives its relative error; `work` makes what is timed.

    Either may raise `Absent`, or fail in a way of its own, which is reported as absence too.
    """

    name: str
    role: Role
    check: Callable[[], float]
    work: Callable[[], Run]
    path: Callable[[], str] = str  # asked after a check that came to a result
    first_call: Callable[[], float | None] = lambda: None  # seconds, asked after the check


@dataclass(frozen=True)
class Group:
    """Contenders for the same work."""

    name: str
    case: dict[str, Any]
    contenders: Sequence[Contender]
    tolerance: float
    bytes: int | None = None  # of one unit of work
    flops: float | None = None  # of one unit of work
    units: int = 1  # in one run


@dataclass
class _Outcome:
    status: Literal["measured", "absent", "wrong"]
    reason: str = ""
    error: float | None = None
    run: Run | None = None
    seconds: float = math.nan
    spread: float = 0.0
    samples: int = 0


@torch.no_grad()
def race(groups: Sequence[Group], setup: Setup, bandwidth: Bandwidth) -> list[Comparison]:
    """Checks all contenders of all groups, then times all that are right in turn, in CUDA graphs."""
    return race_as_they_are(groups, setup, bandwidth, lambda run: prepared(run, setup.kind))


def race_as_they_are(
    groups: Sequence[Group], setup: Setup, bandwidth: Bandwidth, prepare: Callable[[Run], Run] = lambda run: run
) -> list[Comparison]:
    """The same with gradients left as they are, and by default without graphs."""
    # All are checked before any is prepared: preparing runs a step, which changes the state that they share.
    outcomes = [[_ready(group, contender) for contender in group.contenders] for group in groups]
    for group, row in zip(groups, outcomes, strict=True):
        for contender, outcome in zip(group.contenders, row, strict=True):
            if outcome.status == "measured":
                _attempt(outcome, partial(_prepare, outcome, contender, prepare))
    timed = [outcome for row in outcomes for outcome in row if outcome.run]
    clock = None
    if timed:
        runs = [outcome.run for outcome in timed if outcome.run]
        samples = take(runs, [1 / len(runs)] * len(runs), setup.kind, _BOUNDS[setup.kind])
        for i, outcome in enumerate(timed):
            outcome.seconds, outcome.spread = samples.combine(*(float(i == j) for j in range(len(timed))))
            outcome.samples = samples.count
        clock = _busy_clock(runs[0], timed[0].seconds, setup.kind)
    found = [_comparison(g, row, bandwidth, clock, setup.kind) for g, row in zip(groups, outcomes, strict=True)]
    del outcomes, timed
    release(setup.kind)
    return found


def _ready(group: Group, contender: Contender) -> _Outcome:
    started = time.perf_counter()
    outcome = _Outcome("measured")
    _attempt(outcome, partial(_check, outcome, contender, group.tolerance))
    say(f"{group.name}: {contender.name} checked in {time.perf_counter() - started:.1f} s {outcome.reason}".rstrip())
    return outcome


def _attempt(outcome: _Outcome, work: Callable[[], None]) -> None:
    """Does it; whatever a library raises becomes the reason why it is absent."""
    try:
        work()
    except Absent as reason:
        outcome.status, outcome.reason = "absent", str(reason)
    except Exception as problem:
        outcome.status, outcome.reason = "absent", typed_line(problem)[:300]


def _check(outcome: _Outcome, contender: Contender, tolerance: float) -> None:
    outcome.error = contender.check()
    if not outcome.error <= tolerance:
        outcome.status = "wrong"
        outcome.reason = f"its results are {outcome.error:.1e} off, more than {tolerance:g}"


def _prepare(outcome: _Outcome, contender: Contender, prepare: Callable[[Run], Run]) -> None:
    outcome.run = prepare(contender.work())


def _comparison(
    group: Group, outcomes: Sequence[_Outcome], bandwidth: Bandwidth, clock: float | None, kind: str
) -> Comparison:
    floor = group.bytes / bandwidth.bytes_per_s if group.bytes else None
    peak = bf16_peak(device_name(kind)) if group.flops else None
    entries = []
    for contender, outcome in zip(group.contenders, outcomes, strict=True):
        seconds = outcome.seconds / group.units if outcome.run else None
        entries.append(
            Entry(
                name=contender.name,
                role=contender.role,
                status=outcome.status,
                path="" if outcome.error is None else contender.path(),
                reason=outcome.reason,
                error=outcome.error if outcome.error is not None and math.isfinite(outcome.error) else None,
                median_us=1e6 * seconds if seconds else None,
                iqr_us=1e6 * outcome.spread / group.units if seconds else None,
                samples=outcome.samples,
                mfu_percent=100 * group.flops / seconds / peak if group.flops and seconds and peak else None,
                first_call_s=contender.first_call(),
                bandwidth_percent=100 * floor / seconds if floor and seconds else None,
                floor_ratio=seconds / floor if floor and seconds else None,
            )
        )
    ours = next((e.median_us for e in entries if e.role == "ours" and e.median_us), None)
    rivals = [(e.median_us, e.name) for e in entries if e.role == "baseline" and e.median_us]
    best = min(rivals, default=None)
    return Comparison(
        name=group.name,
        case=group.case,
        tolerance=group.tolerance,
        bytes=group.bytes,
        floor_us=1e6 * floor if floor else None,
        flops=group.flops,
        units=group.units,
        clock_mhz=clock,
        entries=entries,
        best_baseline=best[1] if best else None,
        ratio=ours / best[0] if ours and best else None,
    )


def links(size: int, kind: str) -> int:
    """How many links, each with `size` bytes of weights and state of its own, a chain has."""
    wanted = min(_LONGEST, max(2, math.ceil(_WORKING_SET[kind] / size)))
    return max(1, min(wanted, int(free_memory(kind) // (2 * size))))


def copy_bandwidth(kind: str) -> Bandwidth:
    """Of a large copy on the device, read and written bytes counted: the faster of the copy engine's way and of a
    kernel's, which on an H200 differ by half."""
    size = _COPY_BYTES[kind]
    source = torch.ones(size // 8, dtype=torch.float32, device=kind)
    target = torch.empty_like(source)
    ways = [lambda: target.copy_(source), lambda: torch.neg(source, out=target)]
    samples = take([prepared(way, kind) for way in ways], [0.5, 0.5], kind, _BOUNDS[kind])
    median, spread = min(samples.combine(1.0, 0.0), samples.combine(0.0, 1.0))
    return Bandwidth(bytes_per_s=size / median, iqr_percent=100 * spread / median, working_set_bytes=size)


def _busy_clock(run: Run, seconds: float, kind: str) -> float | None:
    """The SM clock in MHz, read while the device works through about a second of `run`."""
    if kind == "cpu":
        return None
    for _ in range(min(2000, math.ceil(1.0 / seconds))):
        run()
    clock = provenance(kind).clock_mhz
    torch.cuda.synchronize()
    return clock


def release(kind: str) -> None:
    """Gives the device's memory that nothing refers to any more back."""
    if kind == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def relative(got: Tensor, expected: Tensor, before: Tensor | None = None) -> float:
    """|got - expected| over |expected|, or over how far it is from what was there before; nan if something is not
    finite."""
    difference = (got.double() - expected.double()).norm()
    size = (expected.double() if before is None else expected.double() - before.double()).norm()
    return float(difference / size.clamp_min(1e-30))
