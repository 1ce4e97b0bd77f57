"""Does the table tell the truth? Whole models of the space, measured end to end, against the sum of their rows."""

from __future__ import annotations

import gc
import logging
import math
import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from nfsearch.latency_lut.agreement import Agreement, agreement_of
from nfsearch.latency_lut.chains import fill
from nfsearch.latency_lut.device import provenance, resolve
from nfsearch.latency_lut.files import TableError
from nfsearch.latency_lut.table import LatencyTable, OutOfMemory
from nfsearch.latency_lut.timing import bounds, prepared, take, warm_up
from nfsearch.latency_lut.workload import Span, Workload
from nfsearch.ops.model import HybridLM
from nfsearch.space.architecture import Architecture
from nfsearch.space.search_space import Fits, SearchSpace

logger = logging.getLogger(__name__)

_TRIES = 50  # draws for each architecture wanted
_POSITIONS = 8  # of a generation that are timed, each in the middle of an equal share of its tokens


@dataclass(frozen=True)
class Check:
    """One architecture under one workload. Times in milliseconds."""

    workload: str
    architecture: str  # notation @ width
    digest: str
    depth: int
    estimated_ms: float
    error_ms: float  # of the estimate, as in `Estimate.error`
    measured_ms: float
    spread_ms: float  # interquartile range of the measurement
    estimated_gb: float  # peak memory
    measured_gb: float | None  # None on a CPU, and for a generation, of which only some positions are run

    @property
    def relative(self) -> float:
        """(estimated - measured) / measured."""
        return self.estimated_ms / self.measured_ms - 1


@dataclass(frozen=True)
class Verification:
    """Every check that was made, and from what: JSON both ways."""

    checks: tuple[Check, ...]
    device: str
    dtype: str
    seed: int
    table: str  # the date in the provenance of the table that was checked

    @property
    def agreement(self) -> dict[str, Agreement]:
        """By the name of the workload."""
        return {name: _times(checks) for name, checks in self._by_workload().items()}

    @property
    def by_depth(self) -> dict[str, dict[str, Agreement]]:
        """By the name of the workload and by depth, such as `6 to 13 operators`, in up to three ranges that hold about
        as many models each."""
        return {
            name: {label: _times(group) for label, group in _thirds(checks).items()}
            for name, checks in self._by_workload().items()
        }

    @property
    def memory(self) -> dict[str, Agreement]:
        """Of peak memory, by the name of the workload, where it was measured."""
        found = {}
        for name, checks in self._by_workload().items():
            pairs = [(check.estimated_gb, check.measured_gb) for check in checks if check.measured_gb is not None]
            if pairs:
                found[name] = agreement_of(pairs)
        return found

    def _by_workload(self) -> dict[str, list[Check]]:
        names = dict.fromkeys(check.workload for check in self.checks)
        return {name: [check for check in self.checks if check.workload == name] for name in names}

    def to_dict(self) -> dict[str, Any]:
        """With the agreement, which `from_dict` works out anew."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "seed": self.seed,
            "table": self.table,
            "agreement": {name: asdict(agreement) for name, agreement in self.agreement.items()},
            "by_depth": {
                name: {label: asdict(agreement) for label, agreement in groups.items()}
                for name, groups in self.by_depth.items()
            },
            "memory": {name: asdict(agreement) for name, agreement in self.memory.items()},
            "checks": [asdict(check) for check in self.checks],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verification:
        """The inverse of `to_dict`."""
        checks = tuple(Check(**check) for check in values["checks"])
        return cls(checks, values["device"], values["dtype"], values["seed"], values["table"])


def verify(
    table: LatencyTable,
    space: SearchSpace,
    workloads: Mapping[str, Workload],
    *,
    dtype: str,
    n: int = 10,
    seed: int = 0,
    fits: Fits | None = None,
    accept: Collection[str] = (),
    progress: Callable[[int, int, Check], None] | None = None,
) -> Verification:
    """Measures `n` random architectures of `space` under each workload, on the table's device, which must be this one.

    Whole models never enter a table, so all of them are held out; fewer are taken where the space has fewer. Those
    of which the table says that a part does not fit into memory are passed over. Each pass is one CUDA graph on a GPU.
    Of a generation the prompt and a few positions are timed, each for its share of the tokens. `fits` is for a space
    whose width is fitted; `accept` is as in `LatencyTable.require_origin`. `progress(done, total, check)` is called
    after each measurement.

    Raises TableError where the table lacks rows, or was made on another device or by other versions or kernels, and
    where no architecture fits into memory.
    """
    kind = resolve(table.provenance.device)
    table.require_origin(table.provenance.device, provenance(kind), accept)
    chosen = _held_out(table, space, workloads, dtype, n, seed, fits)
    if not chosen:
        raise TableError(f"of {_TRIES * n} random members of the space none fits into the memory of {kind}")
    checks: list[Check] = []
    warm_up(kind)
    for architecture in chosen:
        with torch.device(kind):
            model = HybridLM(architecture).to(getattr(torch, dtype)).eval()
        for name, workload in workloads.items():
            choice = table.choice(architecture, workload, dtype)
            try:
                seconds, spread, peak = _measure(model, choice, kind)
            except torch.OutOfMemoryError:
                logger.warning("%s was estimated to fit into memory under %s, and did not", architecture, name)
                continue
            share = choice.batch if workload.phase == "throughput" else 1
            estimate = table.estimate(architecture, workload, dtype)
            check = Check(
                workload=name,
                architecture=str(architecture),
                digest=architecture.digest,
                depth=len(architecture.layers),
                estimated_ms=1e3 * estimate.seconds,
                error_ms=1e3 * estimate.error,
                measured_ms=1e3 * seconds / share,
                spread_ms=1e3 * spread / share,
                estimated_gb=table.memory(architecture, workload, dtype) / 1e9,
                measured_gb=None if peak is None else peak / 1e9,
            )
            checks.append(check)
            if progress:
                progress(len(checks), len(chosen) * len(workloads), check)
        del model
        gc.collect()
        if kind == "cuda":
            torch.cuda.empty_cache()
    return Verification(tuple(checks), table.provenance.device, dtype, seed, table.provenance.date)


def _held_out(
    table: LatencyTable,
    space: SearchSpace,
    workloads: Mapping[str, Workload],
    dtype: str,
    n: int,
    seed: int,
    fits: Fits | None,
) -> list[Architecture]:
    rng = random.Random(seed)
    chosen: dict[str, Architecture] = {}
    for _ in range(_TRIES * n):
        if len(chosen) == n:
            break
        architecture = space.sample(rng, fits).architecture
        try:
            for workload in workloads.values():
                table.estimate(architecture, workload, dtype)
        except OutOfMemory:
            continue
        chosen.setdefault(architecture.digest, architecture)
    return list(chosen.values())


def _measure(model: HybridLM, workload: Workload, kind: str) -> tuple[float, float, float | None]:
    """Seconds of a workload, their spread, and the most bytes it took, the model's included (None where that is not
    known)."""
    passes = [each for span in workload.spans for each in _sampled(span)]
    found = [(times, *_time(model, span, kind)) for times, span in passes]
    seconds = sum(times * each for times, each, _, _ in found)
    spread = math.hypot(*(times * each for times, _, each, _ in found))
    return seconds, spread, found[0][3] if len(found) == 1 else None


def _sampled(span: Span) -> list[tuple[float, Span]]:
    """Lone passes that stand for those of a span, and for how many each."""
    shares = min(span.count, _POSITIONS)
    middles = (span.first + (2 * share + 1) * span.count // (2 * shares) for share in range(shares))
    return [(span.count / shares, Span(span.phase, span.batch, context)) for context in middles]


@torch.inference_mode()
def _time(model: HybridLM, span: Span, kind: str) -> tuple[float, float, float | None]:
    """Seconds of the first pass of a span, their spread, and the most bytes that it and the model took."""
    within = bounds(kind)
    within = replace(within, seconds=2 * within.seconds)  # a long pass is disturbed more often than a short chain
    before = torch.cuda.memory_allocated() if kind == "cuda" else 0  # the model, and libraries' own workspaces
    run, peak = _pass(model, span, kind), None
    if kind == "cuda":
        run()  # compiles and tunes
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        weights = sum(parameter.nbytes for parameter in model.parameters())
        peak = float(torch.cuda.max_memory_allocated() - before + weights)
    seconds, spread = take([prepared(run, kind)], (1.0,), kind, within).combine(1.0)
    if kind == "cuda":
        torch.cuda.empty_cache()
    return seconds, spread, peak


def _pass(model: HybridLM, span: Span, kind: str) -> Callable[[], object]:
    vocab, meta = model.architecture.vocab, model.architecture.meta_tokens
    decode = span.phase == "decode"
    state = model.init_state(span.batch, span.first + decode)
    if decode:
        for held in state:
            fill(held)
        tokens = torch.randint(vocab, (span.batch,), device=kind)
        position = torch.tensor(span.first + meta, device=kind)
        return lambda: model.step(tokens, state, position)
    prompt = torch.randint(vocab, (span.batch, span.first), device=kind)
    return lambda: model.prefill(prompt, state)


def _thirds(checks: list[Check]) -> dict[str, list[Check]]:
    depths = sorted(check.depth for check in checks)
    tops = sorted({depths[len(depths) // 3], depths[2 * len(depths) // 3], depths[-1]})
    groups = [[c for c in checks if low < c.depth <= top] for low, top in zip([0, *tops], tops, strict=False)]
    return {_range([check.depth for check in group]): group for group in groups}


def _range(depths: list[int]) -> str:
    low, high = min(depths), max(depths)
    return f"{low} operators" if low == high else f"{low} to {high} operators"


def _times(checks: list[Check]) -> Agreement:
    return agreement_of([(check.estimated_ms, check.measured_ms) for check in checks])
