"""Who is looked at more closely when a search has ended, and the first such look: timed as whole models."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice

from nfsearch.latency_lut import LatencyTable
from nfsearch.report.confirmation import best
from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.run.config import Config
from nfsearch.run.records import TIMED, result_of
from nfsearch.search.study import Store
from nfsearch.space import Architecture
from nfsearch.support.interrupt import interruptible
from nfsearch.support.terminal import say, steps

MOST_BESIDE = 15  # candidates beside the front that are timed at the end of a search; each takes about a second
_FINALISTS = "finalists"
_ROUNDS = 2  # in which whole models are timed


def near_front(result: RunResult) -> list[CandidateRecord]:
    """The candidates that may be on the front for all that is known: its members, and those that no member dominates by
    more than the error bar of their difference; front after front, each by the first objective."""
    front = [result.candidate(number) for number in result.front]

    def beaten(record: CandidateRecord) -> bool:
        return any(all(_ahead(member, record, name) for name in result.objectives) for member in front)

    on = set(result.front)
    able = [record for record in result.admitted() if record.number in on or not beaten(record)]
    return [*peeled(able, result.objectives)]


def _ahead(one: CandidateRecord, other: CandidateRecord, metric: str) -> bool:
    """Whether one is better by more than the error bar of the difference; as good is enough where both are exact."""
    a, b = one.metrics[metric], other.metrics[metric]
    return b.value - a.value >= math.hypot(a.error, b.error)


def peeled(records: Sequence[CandidateRecord], objectives: Sequence[str]) -> Iterator[CandidateRecord]:
    """The front of the records, the front of the others, and so on; each by the first objective."""
    left = {record.number: record for record in records}
    while left:
        layer = best({number: record.metrics for number, record in left.items()}, objectives)
        yield from [left.pop(number) for number in layer]


def finalists(store: Store, result: RunResult, top: int) -> list[CandidateRecord]:
    """The `top` candidates to confirm: the front, then what would be the front without it, and so on. Once chosen they
    stay, in their order, until the search has gone on, so that confirming can be interrupted and widened."""
    chosen = store.meta.get(_FINALISTS, {})
    known = chosen.get("numbers", []) if chosen.get("candidates") == len(result.candidates) else []
    first = result.contenders()
    rest = [record for record in result.admitted() if record not in first]
    order = (record.number for part in (first, rest) for record in peeled(part, result.objectives))
    numbers = [*islice(chain(known, (number for number in order if number not in known)), top)]
    if len(numbers) > len(known):
        store.set_meta(_FINALISTS, {"candidates": len(result.candidates), "numbers": numbers})
    return [result.candidate(number) for number in numbers]


def time_front(config: Config, store: Store, table: LatencyTable) -> None:
    """Times the front and whatever its error bars reach as whole models, where the device is here."""
    result = result_of(store, measured=False)
    near = near_front(result)
    most = len(result.front) + MOST_BESIDE
    if len(near) > most:
        say(f"{len(near)} candidates lie within the error bars of the front; the nearest {most} of them are timed")
    time_whole(config, store, lambda: table, near[:most])
    timed = result_of(store)
    for number in result.front:
        for name, (_, words) in config.limit_values.excess(timed.candidate(number).metrics).items():
            say(f"#{number} leaves the front: as a whole model it is over the limit on {name} ({words})")


def time_whole(
    config: Config, store: Store, table: Callable[[], LatencyTable], records: Sequence[CandidateRecord]
) -> None:
    """Times candidates as whole models under the workloads that decide, where the device of the run's table is here,
    unless they are known or the config has no whole model measured; twice each. Kept in the study one by one in the
    second round. Raises KeyboardInterrupt after Ctrl-C, between two of them."""
    deciding = {*config.objective_names, *config.limit_values.most}
    workloads = {name: each for name, each in config.latency.workloads.items() if name in deciding}
    timed = dict(store.meta.get(TIMED, {}))
    lacking = {record.digest: Architecture.from_dict(record.architecture) for record in records}
    models = [(architecture, workloads) for digest, architecture in lacking.items() if digest not in timed]
    if not (config.latency.verify and workloads and models and _here(config, store)):
        return
    from nfsearch.latency_lut import verify  # only now: it imports torch

    measured = table()
    kind = measured.provenance.kind
    dtype = config.latency.dtype_on(kind)
    with interruptible() as interrupted, steps("timing the front as whole models") as step:
        verify.warm_up(kind)
        each = verify.time_whole(measured, models, _ROUNDS, dtype=dtype, kind=kind)
        for done, (digest, found) in enumerate(each, start=1):
            if interrupted.is_set():
                break
            if found:
                timed[digest] = {name: check and check.model_dump(mode="json") for name, check in found.items()}
                store.set_meta(TIMED, timed)
            step(done, _ROUNDS * len(models))
    if interrupted.is_set():
        raise KeyboardInterrupt


def _here(config: Config, store: Store) -> bool:
    """Whether the device of a run's latency table is this machine's."""
    from nfsearch.latency_lut import device

    if not device.is_here(config.latency.device):
        return False
    return store.meta["table"]["provenance"]["device"] == device.device_slug(device.resolve(config.latency.device))
