"""Tables that were made elsewhere, with other versions or of other code."""

from __future__ import annotations

import dataclasses

import pytest

from nfsearch.latency_lut import LatencyTable, TableError, Workload, keys_for
from nfsearch.space import Architecture

from .helpers import made_up_row, made_up_table, small_space

W = Workload(context=100)
KEYS = keys_for(small_space(), {"tpot": W}, "float32")
CONTEXTS = keys_for(small_space(), {str(n): Workload(context=n) for n in (20, 100, 200)}, "float32")


def test_another_origin_is_refused_unless_it_is_accepted_by_name() -> None:
    table = made_up_table(KEYS)
    own = table.provenance
    table.require_origin("test-device", own)
    with pytest.raises(TableError, match=r"device test-device, asked for nvidia-h200.*`latency.accept: \[device\]`"):
        table.require_origin("nvidia-h200", own)
    table.require_origin("nvidia-h200", own, ["device"])
    newer = dataclasses.replace(own, driver="999", torch="3.0", nfsearch="9")
    with pytest.raises(TableError, match=r"driver None, now 999; torch 2.13.0, now 3.0\. `nfsearch lut build"):
        table.require_origin("test-device", newer)
    with pytest.raises(TableError, match="made with driver None, now 999"):
        table.require_origin("test-device", newer, ["torch"])
    table.require_origin("test-device", newer, ["torch", "driver"])
    # On another machine its versions say nothing; the digests of the rows' code do.
    table.require_origin("test-device", dataclasses.replace(newer, device="laptop"))


def _of_other_code(table: LatencyTable, start: str) -> int:
    """Makes rows stale, those whose block begins so; how many."""
    stale = [key for key in table.rows if key.block.startswith(start)]
    for key in stale:
        table.add(made_up_row(key, table.rows[key].latency_ms, code="0" * 12))
    return len(stale)


def test_rows_of_other_code_are_refused_where_they_are_asked_for() -> None:
    table = made_up_table(KEYS)
    count = _of_other_code(table, "D"), _of_other_code(table, "ends")
    words = rf"{sum(count)} of {len(KEYS)} rows were timed with other code: D decode \({count[0]}\), ends decode \(2\)"
    with pytest.raises(TableError, match=rf"does not serve here, {words}\. `nfsearch lut build .*accept: \[kernels\]`"):
        table.require(KEYS)
    table.require(KEYS, ["kernels"])
    table.require([key for key in KEYS if not key.block.startswith(("D", "ends"))])
    assert len(table.stale()) == sum(count)
    assert table.stale([key for key in KEYS if key.block == "F"]) == []


def test_what_lies_between_rows_of_other_code_is_refused_too() -> None:
    near, far, farther = (key for key in CONTEXTS if key.block == "A[head_dim=16]" and key.width == 32)
    table = made_up_table(CONTEXTS)
    table.add(made_up_row(far, code="0" * 12))
    for low, high in ((near, far), (far, farther)):
        between = dataclasses.replace(low, context=(low.context + high.context) // 2)
        with pytest.raises(TableError, match=r"1 of 2 rows were timed with other code: A decode \(1\)"):
            table.require([between])
        table.require([between], ["kernels"])
    table.require([near, farther])


def test_a_generation_looks_at_no_row_of_other_code_between_those_of_this_one() -> None:
    generation = Workload(phase="generation", prompt=16, tokens=100)
    space = small_space()
    table = made_up_table(keys_for(space, {"total": generation}, "float32"))
    attention = Architecture.parse("A[head_dim=16]", width=32, vocab=space.vocab)
    seconds = table.estimate(attention, generation).seconds
    key = next(key for key in table.rows if key.block == "A[head_dim=16]" and key.width == 32)
    table.add(made_up_row(key.at(50), 1e4, code="0" * 12))  # of another config, which nothing timed anew
    table.require(keys_for(space, {"total": generation}, "float32"))
    assert table.estimate(attention, generation).seconds == seconds
