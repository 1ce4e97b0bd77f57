"""What a config asks of the machine, its latency table and the budget of candidates: worked out before a search."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from nfsearch.latency_lut import LatencyTable, load_table
from nfsearch.latency_lut.bundled import bundled_table
from nfsearch.latency_lut.keys import Key
from nfsearch.latency_lut.provenance import BUSY, KERNELS
from nfsearch.latency_lut.rows import Row
from nfsearch.latency_lut.verification import Verification, known_verification
from nfsearch.proxies import PROXIES, Proxy
from nfsearch.proxies.combined import combined
from nfsearch.run.config import Config
from nfsearch.run.metrics import costs_of, sizes_of
from nfsearch.search import Budgets
from nfsearch.space import SearchSpace
from nfsearch.support.terminal import alarm, announce, duration, say, steps


def vocabulary(config: Config) -> int:
    """The space's vocabulary where it says one; else the proxy's, whose tokenizer may have to be trained."""
    return config.space.vocab if isinstance(config.space.vocab, int) else proxy_of(config).vocab


def proxy_of(config: Config) -> Proxy:
    """What scores the candidates. Raises ValueError or OSError for settings that cannot be served."""
    device = training_kind(config)
    others = {kind: PROXIES.find(kind)(settings, device) for kind, settings in config.others.items()}
    return combined(PROXIES.find(config.proxy.kind)(config.proxy, device), others)


def check_layers(config: Config, space: SearchSpace) -> None:
    """Raises ValueError unless everything in the space can be built here and run: trained, and, where latencies are of
    this machine's device, decoded."""
    from nfsearch.ops.what_runs import check

    decode = is_here(config) and any(workload.phase != "prefill" for workload in config.latency.workloads.values())
    check(space.alphabet(), space.widths, training_kind(config), decode=decode)


def is_here(config: Config) -> bool:
    """Whether the device that latencies are asked for is this machine's."""
    from nfsearch.latency_lut import device

    return device.is_here(config.latency.device)


def training_kind(config: Config) -> str:
    """What candidates are trained on, "cpu" or "cuda": the device of the config, or, where that is another machine's,
    what there is."""
    from nfsearch.latency_lut import device

    return device.resolve(config.latency.device if is_here(config) else "auto")


def given_table(config: Config) -> LatencyTable | None:
    """The table that a config names, or for another machine's device the one that nfsearch has; None where it is to be
    measured. Raises TableError unless it serves for the device; `LatencyTable.require` asks for its rows."""
    from nfsearch.latency_lut import device

    settings, here = config.latency, is_here(config)
    wanted = device.device_slug(device.resolve(settings.device)) if here else settings.device
    if settings.table != "auto":
        table = load_table(settings.table, None if "device" in settings.accept else wanted)
    elif here:
        return None
    else:
        table = load_table(bundled_table(wanted), wanted)
    machine = device.provenance(device.resolve(settings.device if here else "auto"))
    table.require_origin(wanted, machine, settings.accept)
    found = table.provenance.differences(machine) | {KERNELS: table.staleness(), BUSY: table.disturbance()}
    if accepted := [found[name] for name in settings.accept if found.get(name)]:
        say(f"Beware: accepted of {table.name}: {'; '.join(accepted)}")
    return table


def measure(config: Config, keys: Sequence[Key], path: Path) -> LatencyTable:
    """Builds, or completes, a table on this machine's device."""
    from nfsearch.latency_lut import device, profiler

    kind = device.resolve(config.latency.device)
    spent: dict[str, float] = {}
    began, made = time.monotonic(), 0
    with steps(f"latency table on {device.device_name(kind)}") as step:

        def progress(done: int, total: int, row: Row | None) -> None:
            nonlocal made
            if row is None:
                step.before = done
            else:
                made += 1
            again = made - (total - step.before)
            if again == 1:
                announce("Something else uses the machine: what it disturbed is measured again, up to three times")
            if again < 1:
                step(done, total)
            else:
                line = f"{step.what}: {total} of {total}, and {again} again"
                step.show(line, line, False)

        table = profiler.build(
            keys, path, device=config.latency.device, accept=config.latency.accept, progress=progress, spent=spent
        )
    if spent:
        by_time = sorted(spent.items(), key=lambda item: -item[1])
        work = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in by_time)
        say(f"{made} measurements ({step.before} known before) in {duration(time.monotonic() - began)}: {work}")
    if disturbance := table.disturbance():
        say(f"Beware: {disturbance}: `nfsearch lut show` marks them with ~")
    return table


def check(
    config: Config,
    space: SearchSpace,
    table: LatencyTable,
    number: int,
    seed: int,
    known: Verification | None = None,
    keep: Callable[[Verification], object] = lambda found: None,
) -> Verification:
    """Whole random models measured against the table's estimates. What `known` has of them is not measured again; after
    each model `keep` is given what is known by then, other models of `known` included. Returns that of the random
    models."""
    from nfsearch.latency_lut import verify

    dtype = config.latency.dtype_on(table.provenance.kind)
    with steps("checking the table on whole models") as step:

        def progress(done: int, total: int, found: Verification) -> None:
            step(done, total)
            keep(found.joined(known) if known else found)

        return verify.verify(
            table,
            space,
            config.latency.workloads,
            dtype=dtype,
            n=number,
            seed=seed,
            fits=budgets_of(config, table).fit,
            accept=config.latency.accept,
            known=known.checks_of(config.latency.workloads, dtype) if known else (),
            progress=progress,
        )


def checked(config: Config, space: SearchSpace, table: LatencyTable) -> Verification | None:
    """The check of a run's table: made now where the device is here and the config asks for it, else the one that is
    kept beside the table. Says loudly where there is none."""
    if config.latency.verify and is_here(config):
        found: Verification | None = check(config, space, table, config.latency.verify, config.search.seed + 1)
    else:
        found = known_verification(table)
    for complaint in found.complaints(config.latency.trust) if found else ():
        alarm(f"DO NOT TRUST the latency table {table.name}: {complaint}")
    if found is None:
        alarm(
            f"BEWARE: {table.name} was never compared with whole models. "
            f"`nfsearch lut verify {table.path} --config CONFIG` on {table.provenance.device} does it."
        )
    return found


def budgets_of(config: Config, table: LatencyTable | None) -> Budgets:
    """What a config lets an architecture cost, as the table estimates it; while there is none, how large it may be."""
    if table is None:
        dtype = config.latency.dtype_on(training_kind(config))
        return Budgets(sizes_of(config.latency.workloads, dtype), config.limit_values)
    dtype = config.latency.dtype_on(table.provenance.kind)
    return Budgets(costs_of(table, config.latency.workloads, dtype), config.limit_values)
