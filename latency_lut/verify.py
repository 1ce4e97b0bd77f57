"""Does the table tell the truth? Whole models of the space, measured end to end, against the sum of their rows."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from scipy import stats

from nfsearch.latency_lut.device import provenance, resolve
from nfsearch.latency_lut.profiler import fill
from nfsearch.latency_lut.table import LatencyTable, OutOfMemory, TableError
from nfsearch.latency_lut.timing import bounds, prepared, take, warm_up
from nfsearch.latency_lut.workload import Workload
from nfsearch.ops.model import HybridLM
from nfsearch.space.architecture import Architecture
from nfsearch.space.search_space import Fits, SearchSpace

_TRIES = 50  # draws for each architecture wanted


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

    @property
    def relative(self) -> float:
        """(estimated - measured) / measured."""
        return self.estimated_ms / self.measured_ms - 1


@dataclass(frozen=True)
class Agreement:
    """How well estimates agree with measurements under one workload. Errors are fractions of the measured time.

    The rank correlations are None for fewer than three models.
    """

    models: int
    mape: float  # mean absolute error
    bias: float  # mean error; positive: the table says too much
    worst: float  # the largest error, with its sign
    spearman: float | None
    kendall: float | None


@dataclass(frozen=True)
class Verification:
    """Every check that was made, and from what: JSON both ways."""

    checks: tuple[Check, ...]
    device: str
    dtype: str
    seed: int

    @property
    def agreement(self) -> dict[str, Agreement]:
        """By the name of the workload."""
        names = dict.fromkeys(check.workload for check in self.checks)
        return {name: _agreement([check for check in self.checks if check.workload == name]) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """With the agreement, which `from_dict` works out anew."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "seed": self.seed,
            "agreement": {name: asdict(agreement) for name, agreement in self.agreement.items()},
            "checks": [asdict(check) for check in self.checks],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verification:
        """The inverse of `to_dict`."""
        checks = tuple(Check(**check) for check in values["checks"])
        return cls(checks, values["device"], values["dtype"], values["seed"])


def verify(
    table: LatencyTable,
    space: SearchSpace,
    workloads: Mapping[str, Workload],
    *,
    dtype: str,
    n: int = 10,
    seed: int = 0,
    fits: Fits | None = None,
    progress: Callable[[int, int, Check], None] | None = None,
) -> Verification:
    """Measures `n` random architectures of `space` under each workload, on the table's device, which must be this one.

    Whole models never enter a table, so all of them are held out; fewer are taken where the space has fewer. Those
    of which the table says that a part does not fit into memory are passed over. `fits` is for a space whose width is
    fitted. `progress(done, total, check)` is called after each measurement.

    Raises TableError where the table lacks rows, or was made on another device or by other versions or kernels.
    """
    kind = resolve(table.provenance.device)
    if differences := table.provenance.differences(provenance(kind)):
        raise TableError(f"{table.name} cannot be checked here: it was made with {'; '.join(differences)}")
    chosen = _held_out(table, space, workloads, dtype, n, seed, fits)
    checks: list[Check] = []
    warm_up(kind)
    for architecture in chosen:
        times = _measure(architecture, workloads, kind, getattr(torch, dtype))
        for name, (measured, spread) in times.items():
            estimate = table.estimate(architecture, workloads[name], dtype)
            check = Check(
                workload=name,
                architecture=str(architecture),
                digest=architecture.digest,
                depth=len(architecture.layers),
                estimated_ms=1e3 * estimate.seconds,
                error_ms=1e3 * estimate.error,
                measured_ms=1e3 * measured,
                spread_ms=1e3 * spread,
            )
            checks.append(check)
            if progress:
                progress(len(checks), len(chosen) * len(workloads), check)
    return Verification(tuple(checks), table.provenance.device, dtype, seed)


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


def _measure(
    architecture: Architecture, workloads: Mapping[str, Workload], kind: str, dtype: torch.dtype
) -> dict[str, tuple[float, float]]:
    """(seconds, spread) of each workload, by name; the model is gone from memory afterwards."""
    with torch.device(kind):
        model = HybridLM(architecture).to(dtype).eval()
    times = {name: _time(model, workload, kind) for name, workload in workloads.items()}
    del model
    gc.collect()
    if kind == "cuda":
        torch.cuda.empty_cache()
    return times


@torch.inference_mode()
def _time(model: HybridLM, workload: Workload, kind: str) -> tuple[float, float]:
    within = bounds(kind)
    within = replace(within, seconds=2 * within.seconds)  # a long pass is disturbed more often than a short chain
    return take([prepared(_pass(model, workload, kind), kind)], (1.0,), kind, within).combine(1.0)


def _pass(model: HybridLM, workload: Workload, kind: str) -> Callable[[], object]:
    vocab, meta = model.architecture.vocab, model.architecture.meta_tokens
    decode = workload.phase == "decode"
    state = model.init_state(workload.batch, workload.context + decode)
    if decode:
        for held in state:
            fill(held)
        tokens = torch.randint(vocab, (workload.batch,), device=kind)
        position = torch.tensor(workload.context + meta, device=kind)
        return lambda: model.step(tokens, state, position)
    prompt = torch.randint(vocab, (workload.batch, workload.context), device=kind)
    return lambda: model.prefill(prompt, state)


def _agreement(checks: list[Check]) -> Agreement:
    errors = [check.relative for check in checks]
    estimated, measured = [check.estimated_ms for check in checks], [check.measured_ms for check in checks]
    ranked = len(checks) >= 3 and len(set(estimated)) > 1 and len(set(measured)) > 1
    return Agreement(
        models=len(checks),
        mape=sum(map(abs, errors)) / len(errors),
        bias=sum(errors) / len(errors),
        worst=max(errors, key=abs),
        spearman=float(stats.spearmanr(estimated, measured).statistic) if ranked else None,
        kendall=float(stats.kendalltau(estimated, measured).statistic) if ranked else None,
    )
