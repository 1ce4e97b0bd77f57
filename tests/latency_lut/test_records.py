"""Files that look like a latency table, or like the journal of one, and hold something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nfsearch.latency_lut import TableError, Workload, keys_for, load_table, save_table
from nfsearch.latency_lut.files import Journal

from .helpers import made_up_table, small_space

KEYS = keys_for(small_space(), {"tpot": Workload(context=100)}, "float32")
DEEP = b"[" * 100_000


def column(name: str, value: object, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        at, meta = table.schema.get_field_index(name), table.schema.metadata
        values = pa.array([value] * table.num_rows, kind or table.schema.field(name).type)
        return table.set_column(at, name, values).replace_schema_metadata(meta)

    return change


def metadata(name: bytes, value: bytes) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.replace_schema_metadata({**table.schema.metadata, name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(0, 0), "has no rows of test-device"),
        (column("width", None), "width: Input should be a valid integer, found None"),
        (column("batch", "many", pa.string()), "batch: Input should be a valid integer, .* found 'many'"),
        (column("latency_ms", float("nan")), "latency_ms: Input should be .* found nan"),
        (column("latency_ms", -1.0), "latency_ms: Input should be greater than or equal to 0.000000001, found -1.0"),
        (
            column("latency_ms", 5e-324),
            "latency_ms: Input should be greater than or equal to 0.000000001, found 5e-324",
        ),
        (column("latency_ms", 1e200), "latency_ms: Input should be less than or equal to .*, found 1e\\+200"),
        (column("spread_ms", 1e200), "spread_ms: Input should be less than or equal to .*, found 1e\\+200"),
        (column("power_w", 1e300), "power_w: Input should be less than or equal to .*, found 1e\\+300"),
        (column("spread_ms", float("inf")), "spread_ms: Input should be a finite number, found inf"),
        (column("runs", 0), "runs: a time of no runs"),
        (column("phase", "sleep"), "phase: Input should be 'decode' or 'prefill', found 'sleep'"),
        (column("dtype", "int3"), "dtype: Input should be 'bfloat16', .* found 'int3'"),
        (column("block", "ends[vocab=x]"), r"block: expected ends\[vocab=N\], found 'ends\[vocab=x\]'"),
        (column("device", "other"), "not a complete latency table: 'other'"),
        (metadata(b"nfsearch.provenance", DEEP), "not a complete latency table"),
        (metadata(b"nfsearch.provenance", b"[1]"), "not a complete latency table"),
        (metadata(b"nfsearch.provenance", b'{"test-device": {"device": 3}}'), "device: Input should be a valid string"),
        (metadata(b"nfsearch.provenance", b'{"test-device": []}'), "Provenance: Input should be a valid dictionary"),
    ],
)
def test_a_table_of_something_else_is_refused(
    tmp_path: Path, change: Callable[[pa.Table], pa.Table], message: str
) -> None:
    path = tmp_path / "table.parquet"
    save_table(made_up_table(KEYS), path)
    pq.write_table(change(pq.read_table(path)), path)
    with pytest.raises(TableError, match=message) as said:
        load_table(path)
    assert "delete it and `nfsearch lut build CONFIG -o" in str(said.value)
    assert len(str(said.value).splitlines()) == 1


def test_millions_of_rows_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"device": pa.nulls(8_000_000, pa.string())}), path)
    with pytest.raises(TableError, match="has 8,000,000 rows, and no latency table has more than 200,000"):
        load_table(path)


def lines(*records: object) -> bytes:
    return b"".join(json.dumps(record).encode() + b"\n" for record in records)


PROVENANCE = made_up_table([]).provenance.to_dict()
ROW = made_up_table(KEYS[:1]).rows[KEYS[0]].record()


@pytest.mark.parametrize(
    "content",
    [
        DEEP + b"\n",
        b"\xff\xfe\x00\n",
        b"[1]\n",
        b"9" * 5000 + b"\n",
        lines(PROVENANCE, [1]),
        lines({**PROVENANCE, "threads": "x"}),
        lines(PROVENANCE, {**ROW, "width": None}),
        lines(PROVENANCE, {**ROW, "latency_ms": float("nan")}),
        lines(PROVENANCE, {**ROW, "batch": 0}),
    ],
)
def test_a_journal_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    journal = Journal(tmp_path / "t.parquet")
    journal.path.write_bytes(content)
    with pytest.raises(TableError, match=r"t\.parquet\.journal is no journal of this version's .*; delete it") as said:
        journal.read()
    assert len(str(said.value).splitlines()) == 1
