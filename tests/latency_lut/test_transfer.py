from __future__ import annotations

import dataclasses

import pytest

from nfsearch.latency_lut import LatencyTable, TableError, Workload, keys_for
from nfsearch.latency_lut.transfer import compare, sample_keys

from .helpers import made_up_row, made_up_table, small_space

KEYS = keys_for(small_space(), {"near": Workload(context=100), "far": Workload(context=200)}, "float32")


def _other(wrong: dict[str, float] | None = None) -> LatencyTable:
    """In bfloat16, five times as fast; `wrong` blocks by that much more."""
    rows = made_up_table(KEYS).rows
    table = LatencyTable(dataclasses.replace(made_up_table([]).provenance, device="fast"))
    for key, row in rows.items():
        assert row.latency_ms is not None
        factor = (wrong or {}).get(key.block.partition("[")[0], 1.0)
        table.add(made_up_row(dataclasses.replace(key, dtype="bfloat16"), row.latency_ms / 5 * factor))
    return table


def test_a_device_that_is_slower_by_one_factor_is_predicted_exactly() -> None:
    chosen = sample_keys(KEYS, _other(), 8)
    assert len(chosen) == len(set(chosen)) == 8
    found = compare(chosen, made_up_table(KEYS), _other())
    assert (found.factor, found.fitted, found.overall.models) == (pytest.approx(5.0), 4, 4)
    assert found.overall.mape == pytest.approx(0, abs=1e-12)


def test_an_operator_that_is_slower_by_another_factor_shows() -> None:
    found = compare(KEYS, made_up_table(KEYS), _other({"D": 2.0}))
    assert found.factor == pytest.approx(5.0)
    assert found.by_operator["D decode"].bias == pytest.approx(1.0)
    assert found.by_operator["A decode"].mape == pytest.approx(0, abs=1e-12)
    assert found.overall.worst == pytest.approx(1.0)


def test_the_sample_is_spread_over_the_times() -> None:
    other = _other()
    times = [other.rows[dataclasses.replace(key, dtype="bfloat16")].latency_ms for key in sample_keys(KEYS, other, 4)]
    assert times[0] == min(row.latency_ms for row in other.rows.values() if row.latency_ms)
    assert times[-1] == max(row.latency_ms for row in other.rows.values() if row.latency_ms)


def test_too_few_rows_in_common() -> None:
    other = _other()
    with pytest.raises(TableError, match="has 2 rows that CONFIG asks for; calibrating takes at least 4"):
        sample_keys(KEYS[:2], other, 8)
    here = made_up_table(KEYS)
    for key in KEYS[3:]:
        here.add(made_up_row(key, None))
    with pytest.raises(TableError, match="only 3 of the rows have a time on both devices"):
        compare(KEYS, here, other)
