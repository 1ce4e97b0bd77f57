from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nfsearch.latency_lut import LatencyTable, TableError, Workload, bundled, keys_for, load_table, save_table
from nfsearch.latency_lut.agreement import Trust
from nfsearch.latency_lut.verification import known_verification, verification_path

from .helpers import made_up_check, made_up_table, made_up_verification, small_space


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    """The only one that is bundled."""
    monkeypatch.setattr(bundled, "folder", lambda: tmp_path)
    table = made_up_table(keys_for(small_space(), {"tpot": Workload(context=100)}, "float32"))
    save_table(table, tmp_path / "test-device.parquet")
    return table


def test_a_bundled_table_is_found_by_its_device(table: LatencyTable) -> None:
    assert load_table(bundled.bundled_table("test-device"), "test-device") == table
    with pytest.raises(TableError, match=r"only of test-device\): `nfsearch lut build CONFIG -o nvidia-b9000.parq"):
        bundled.bundled_table("nvidia-b9000")


def test_every_table_that_is_shipped_is_of_its_device_and_this_code_and_was_checked() -> None:
    for path in bundled.folder().glob("*.parquet"):
        table = load_table(path, path.stem)
        assert table.provenance.kind == "cuda"
        assert not table.stale()
        assert path.stat().st_size < 4e6
        found = known_verification(table)
        assert found
        assert not found.complaints(Trust())
        assert min(agreement.models for agreement in found.agreement.values()) >= 12


def test_a_verification_is_known_only_of_the_very_table(table: LatencyTable) -> None:
    assert known_verification(table) is None
    found = made_up_verification(made_up_check(1.0, 1.1), device="test-device", table=table.provenance.date)
    assert table.path is not None
    kept = verification_path(table.path)
    kept.write_text(found.model_dump_json())
    assert known_verification(table) == found
    table.provenance = dataclasses.replace(table.provenance, date="2001-01-01")
    assert known_verification(table) is None
    kept.write_text("{")
    with pytest.raises(TableError, match=r"is no verification of this version.*`nfsearch lut verify"):
        known_verification(table)
