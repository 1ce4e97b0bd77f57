"""Does the table tell the truth? Whole models of the space, measured end to end, against the sum of their rows."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from nfsearch.latency_lut.device import provenance, resolve
from nfsearch.latency_lut.errors import OutOfMemory, TableError
from nfsearch.latency_lut.places import keys_for
from nfsearch.latency_lut.table import LatencyTable
from nfsearch.latency_lut.timing import Bounds, bounds, warm_up
from nfsearch.latency_lut.verification import Check, Verification
from nfsearch.latency_lut.whole import build_model, clean_up, is_out_of_memory, time_models
from nfsearch.latency_lut.workload import Span, Workload
from nfsearch.ops.model import HybridLM
from nfsearch.space.architecture import Architecture
from nfsearch.space.search_space import Fits, SearchSpace

logger = logging.getLogger(__name__)

_TRIES = 50  # draws for each architecture wanted
_AGAIN = 2  # looks more at a model whose fastest two are so many times apart, or that takes so many times the estimate
_APART, _BEYOND = 1.25, 3.0
_POSITIONS = 8  # of a generation that are timed, each in the middle of an equal share of its tokens


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
    known: Iterable[Check] = (),
    progress: Callable[[int, int, Verification], None] | None = None,
) -> Verification:
    """Measures `n` random architectures of `space` under each workload, on the table's device, which must be this one.

    Whole models never enter a table, so all of them are held out; fewer are taken where the space has fewer. Those
    of which the table says that a part does not fit into memory are passed over. Each pass is one CUDA graph on a GPU.
    Of a generation the prompt and a few positions are timed, each for its share of the tokens. `fits` is for a space
    whose width is fitted; `accept` is as in `LatencyTable.require_origin`. What `known` holds of a chosen model is not
    measured again. `progress(done, total, found so far)` is called each time that a model was timed, on a CPU twice.

    Raises TableError where the table lacks rows, or was made on another device, by other versions or of other code, and
    where no architecture fits into memory.
    """
    kind = resolve(table.provenance.device)
    table.require_origin(table.provenance.device, provenance(kind), accept)
    table.require(keys_for(space, workloads, dtype), accept)
    chosen = _held_out(table, space, workloads, dtype, n, seed, fits)
    if not chosen:
        raise TableError(f"of {_TRIES * n} random members of the space none fits into the memory of {kind}")
    earlier = {(check.digest, check.workload): check for check in known}
    made = {each.digest: {name: earlier.get((each.digest, name)) for name in workloads} for each in chosen}
    lacking = [
        (each, {name: workload for name, workload in workloads.items() if made[each.digest][name] is None})
        for each in chosen
    ]
    lacking = [(each, names) for each, names in lacking if names]
    rounds, came = bounds(kind).looks, table.provenance

    def found() -> Verification:
        checks = [check for by_name in made.values() for check in by_name.values() if check]
        return Verification.of(checks, device=came.device, dtype=dtype, seed=seed, table=came.date, workloads=workloads)

    if lacking:
        warm_up(kind)
    for done, (digest, checks) in enumerate(time_whole(table, lacking, rounds, dtype=dtype, kind=kind), start=1):
        made[digest].update(checks)
        if progress:
            progress(done, rounds * len(lacking), found())
    return found()


def time_whole(
    table: LatencyTable,
    models: Sequence[tuple[Architecture, Mapping[str, Workload]]],
    rounds: int,
    *,
    dtype: str,
    kind: str,
) -> Iterator[tuple[str, dict[str, Check | None]]]:
    """Whole models measured end to end, each under its workloads, on this machine's device of `kind`, "cpu" or "cuda".

    All are timed, then all again, `rounds` times, and in the last round what still seems disturbed up to twice more: of
    each the fastest time counts, and the next one shows in the error bar. Yields the digest of a model each time that a
    round timed it, with what is known of it when the last one is done, and with nothing before; None under a workload
    for which it does not fit into memory after all. `timing.warm_up` comes before the first.
    """
    within = bounds(kind)
    looks: dict[str, list[Mapping[str, Check | None]]] = {}
    for number in range(1, rounds + 1):
        for architecture, workloads in models:
            look = partial(_look, table, architecture, workloads, dtype, kind, within)
            seen = looks.setdefault(architecture.digest, [])
            seen.append(look())
            if number < rounds:
                yield architecture.digest, {}
                continue
            while len(seen) < rounds + _AGAIN and any(map(_disturbed, _by_workload(seen).values())):
                seen.append(look())
            yield architecture.digest, {name: _fastest(each) for name, each in _by_workload(seen).items()}


def _look(
    table: LatencyTable,
    architecture: Architecture,
    workloads: Mapping[str, Workload],
    dtype: str,
    kind: str,
    within: Bounds,
) -> dict[str, Check | None]:
    found = _checks(table, architecture, workloads, dtype, kind, within)
    clean_up(kind)
    return found


def _by_workload(looks: Sequence[Mapping[str, Check | None]]) -> dict[str, list[Check | None]]:
    return {name: [look[name] for look in looks] for name in looks[0]}


def _disturbed(looks: Sequence[Check | None]) -> bool:
    """Whether something else may have used the machine in all looks at a model but one, or in every one."""
    checks = [check for check in looks if check]
    if len(checks) < len(looks):
        return False
    fast, *others = sorted(check.measured_ms for check in checks)
    return bool(others and others[0] > _APART * fast) or fast > _BEYOND * checks[0].estimated_ms


def _fastest(looks: Sequence[Check | None]) -> Check | None:
    """The fastest of the measurements; half of its spread, which is its error bar, reaches the next one at least. None
    where the model did not fit in some look."""
    checks = sorted((check for check in looks if check), key=lambda check: check.measured_ms)
    if len(checks) < len(looks):
        return None
    gap = checks[1].measured_ms - checks[0].measured_ms if len(checks) > 1 else 0.0
    return checks[0].model_copy(update={"spread_ms": max(checks[0].spread_ms, 2 * gap)})


def _checks(
    table: LatencyTable,
    architecture: Architecture,
    workloads: Mapping[str, Workload],
    dtype: str,
    kind: str,
    within: Bounds,
) -> dict[str, Check | None]:
    """A model under its workloads; None under those for which it does not fit into memory after all."""
    found: dict[str, Check | None] = dict.fromkeys(workloads)
    with _passed_over(f"{architecture} was estimated to fit into memory, and did not"):
        model = build_model(architecture, dtype, kind)
        for name, workload in workloads.items():
            with _passed_over(f"{architecture} was estimated to fit into memory under {name}, and did not"):
                found[name] = _checked(table, model, name, workload, dtype, kind, within)
    return found


@contextmanager
def _passed_over(words: str) -> Iterator[None]:
    """What has no room in memory, with a warning."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        logger.warning(words)


def _checked(
    table: LatencyTable, model: HybridLM, name: str, workload: Workload, dtype: str, kind: str, within: Bounds
) -> Check:
    """A model under one workload."""
    architecture = model.architecture
    choice = table.choice(architecture, workload, dtype)
    seconds, spread, peak = _measure(model, choice, kind, within)
    share = choice.batch if workload.phase == "throughput" else 1
    estimate = table.estimate(architecture, workload, dtype)
    return Check(
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


def _measure(model: HybridLM, workload: Workload, kind: str, within: Bounds) -> tuple[float, float, float | None]:
    """Seconds of a workload, their spread, and the most bytes it took, the model's included (None where that is not
    known)."""
    passes = [each for span in workload.spans for each in _sampled(span)]
    found = [(times, *_time(model, span, kind, within)) for times, span in passes]
    seconds = sum(times * each for times, each, _, _ in found)
    spread = math.hypot(*(times * each for times, _, each, _ in found))
    return seconds, spread, found[0][3] if len(found) == 1 else None


def _sampled(span: Span) -> list[tuple[float, Span]]:
    """Lone passes that stand for those of a span, and for how many each."""
    shares = min(span.count, _POSITIONS)
    middles = (span.first + (2 * share + 1) * span.count // (2 * shares) for share in range(shares))
    return [(span.count / shares, Span(span.phase, span.batch, context)) for context in middles]


def _time(model: HybridLM, span: Span, kind: str, within: Bounds) -> tuple[float, float, float | None]:
    """Seconds of the first pass of a span, their spread, and the most bytes that it and the model took."""
    timed = time_models([model], span, [1.0], kind, within)
    seconds, spread = timed.samples.combine(1.0)
    peak = timed.peak
    del timed  # what the pass worked on goes
    clean_up(kind)
    return seconds, spread, peak
