"""What the candidates of a run are measured by, and the costs that need no training."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from nfsearch.latency_lut import LatencyTable, OutOfMemory, Workload
from nfsearch.latency_lut.estimator import ITEM_BYTES
from nfsearch.space import Architecture
from nfsearch.support.metrics import BYTES, COUNT, JOULES, Measurement, Measurements, Metric
from nfsearch.support.settings import SettingError

MEMORY = Metric("memory", BYTES)  # the bytes that the hungriest workload needs
PARAMETERS = Metric("parameters", COUNT)
STATE = Metric("state", BYTES)  # of the operators, of all sequences at their longest; of the hungriest workload


def energy_of(workload: str) -> str:
    """The name of the metric of a workload's energy."""
    return f"{workload}_energy"


def known_metrics(proxy: Iterable[Metric], workloads: Mapping[str, Workload]) -> dict[str, Metric]:
    """By name: what the proxy measures, the time of each workload, memory, parameters and state, and the energy of each
    workload, which only tables of GPUs know. Raises ValueError where two have one name."""
    times = [workload.metric(name) for name, workload in workloads.items()]
    energies = [Metric(energy_of(name), JOULES) for name in workloads]
    found: dict[str, Metric] = {}
    for metric in proxy:
        if metric.name in found:
            raise SettingError(f"two proxies measure {metric.name!r}: leave one of them out", "also")
        found[metric.name] = metric
    for metric in (*times, MEMORY, PARAMETERS, STATE, *energies):
        if metric.name in found:
            what = "the name of something else that is measured"
            raise SettingError(f"{metric.name!r} is {what}", "latency", "workloads", metric.name)
        found[metric.name] = metric
    return found


def require_power(names: Iterable[str], workloads: Mapping[str, Workload], table: LatencyTable) -> None:
    """Raises ValueError if an energy is among these names, and the table does not know the power of its rows."""
    energies = {energy_of(name) for name in workloads}.intersection(names)
    timed = [row for row in table.rows.values() if row.latency_ms is not None]
    if energies and any(row.power_w is None for row in timed):
        raise ValueError(
            f"{', '.join(sorted(energies))}: {table.name} does not know the power of its device; "
            "only tables of GPUs with a driver that tells it do"
        )


def sizes_of(workloads: Mapping[str, Workload], dtype: str) -> Callable[[Architecture], Measurements]:
    """What an architecture costs that no table has to tell, by the name of the metric: parameters and state."""
    needy = _needy(workloads)

    def sizes(architecture: Architecture) -> Measurements:
        state = max(state_bytes(architecture, workload) for workload in needy)
        return {PARAMETERS.name: Measurement(float(architecture.parameters)), STATE.name: Measurement(state)}

    def state_bytes(architecture: Architecture, workload: Workload) -> float:
        batch, length = workload.choices[0].batch, workload.choices[0].length + architecture.meta_tokens
        layers = Counter(architecture.layers)
        costs = ((layer.cost(architecture.width), count) for layer, count in layers.items())
        return float(sum(count * cost.state_bytes(batch, length, ITEM_BYTES[dtype]) for cost, count in costs))

    return sizes


def _needy(workloads: Mapping[str, Workload]) -> list[Workload]:
    """A throughput takes whatever memory there is, so it has no say in how much is needed."""
    return [each for each in workloads.values() if each.phase != "throughput"] or list(workloads.values())


def costs_of(
    table: LatencyTable, workloads: Mapping[str, Workload], dtype: str
) -> Callable[[Architecture], Measurements]:
    """What the table says that an architecture costs, and its sizes, by the name of the metric. Infinite where it does
    not fit into the device's memory."""
    needy, sizes = _needy(workloads), sizes_of(workloads, dtype)

    def costs(architecture: Architecture) -> Measurements:
        found: dict[str, Measurement] = {}
        for name, workload in workloads.items():
            try:
                each = table.estimate(architecture, workload, dtype)
                found[name] = Measurement(each.seconds, each.error)
                if each.joules is not None:
                    found[energy_of(name)] = Measurement(each.joules)
            except OutOfMemory:
                found[name] = Measurement(math.inf)
        try:
            memory = max(table.memory(architecture, workload, dtype) for workload in needy)
        except OutOfMemory:
            memory = math.inf
        return {**found, MEMORY.name: Measurement(memory), **sizes(architecture)}

    return costs
