"""A table with made-up times, and a small space."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import pytest

from nfsearch.latency_lut import Key, LatencyTable, Provenance, Row, rows
from nfsearch.latency_lut.code import digest_of
from nfsearch.latency_lut.rows import MEASURED, OUT_OF_MEMORY
from nfsearch.latency_lut.verification import Check, Verification
from nfsearch.latency_lut.workload import Workload
from nfsearch.space.notation import parse
from nfsearch.space.search_space import SearchSpace

PROVENANCE = Provenance(
    device="test-device",
    device_name="Test Device",
    kind="cpu",
    driver=None,
    cuda=None,
    torch="2.13.0",
    triton=None,
    fla=None,
    python="3.11.7",
    nfsearch="0.1.0",
    os="Linux 6",
    cpu="Test CPU",
    threads=1,
    memory_gb=None,
    clock_mhz=None,
    date="2026-11-23T20:00:00+00:00",
    command="nfsearch lut build config.yaml",
)


def made_up_row(key: Key, latency_ms: float | None = 1.0, **changes: object) -> Row:
    values: dict[str, object] = dict(
        status=MEASURED if latency_ms is not None else OUT_OF_MEMORY,
        latency_ms=latency_ms,
        spread_ms=0.1,
        runs=4,
        layers=4,
        working_set_mb=1.5,
        between_mb=0.0,
        disturbance=0.0,
        cuda_graph=False,
        code=digest_of(key),
        workspace_mb=0.0,
        clock_mhz=1980.0,
        power_w=400.0,
        throttle="",
    )
    return Row(key, **{**values, **changes})  # type: ignore[arg-type]


def made_up_table(keys: Iterable[Key]) -> LatencyTable:
    """Row number i (from 1) takes i milliseconds."""
    return LatencyTable(PROVENANCE, {key: made_up_row(key, float(i)) for i, key in enumerate(keys, start=1)})


def measure_quickly(monkeypatch: pytest.MonkeyPatch, **bounds: object) -> None:
    """On a CPU with a small cache, so in small models, for a moment only, and whatever else the machine does."""
    from nfsearch.latency_lut import disturbance, profiler, timing, verify

    quick: dict[str, object] = dict(warm_up=0.0, least=2, most=2, seconds=0.01, looks=1)
    within = dataclasses.replace(timing.CPU, **{**quick, **bounds})  # type: ignore[arg-type]
    for module in (profiler, verify):
        monkeypatch.setattr(module, "bounds", lambda kind: within)
        monkeypatch.setattr(module, "warm_up", lambda kind: None)
    monkeypatch.setattr(profiler, "cache_bytes", lambda kind: 1e6)
    monkeypatch.setitem(disturbance._SIZES, "cpu", 32)
    monkeypatch.setattr(rows, "QUIET", math.inf)


def small_space(widths: tuple[int, ...] = (32, 64), **rest: object) -> SearchSpace:
    layers = parse("((A[head_dim=16, window=8|none] | D[head_dim=16]) F{0..2})*{1..4}", {})
    return SearchSpace(layers=layers, widths=widths, vocab=64, **rest)  # type: ignore[arg-type]


def made_up_check(estimated_ms: float, measured_ms: float, **changes: object) -> Check:
    values: dict[str, object] = dict(
        workload="tpot",
        architecture="F @ 32",
        digest="0" * 16,
        depth=1,
        estimated_ms=estimated_ms,
        error_ms=0.1,
        measured_ms=measured_ms,
        spread_ms=0.1,
        estimated_gb=1.0,
        measured_gb=None,
    )
    return Check(**{**values, **changes})  # type: ignore[arg-type]


def made_up_verification(*checks: Check, device: str = "cpu", table: str = "2026") -> Verification:
    workloads = {check.workload: Workload() for check in checks}
    return Verification.of(checks, device=device, dtype="float32", seed=0, table=table, workloads=workloads)
