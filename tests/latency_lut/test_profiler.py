from __future__ import annotations

import dataclasses
import io
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from nfsearch.latency_lut import (
    Key,
    Row,
    TableError,
    Workload,
    keys_for,
    load_table,
    profiler,
    rows,
    save_table,
)
from nfsearch.latency_lut.device import provenance
from nfsearch.latency_lut.errors import Busy
from nfsearch.latency_lut.files import Journal, read_tables, write_tables
from nfsearch.latency_lut.profiler import Profiler
from nfsearch.latency_lut.render import render
from nfsearch.support.terminal import plain_console

from .helpers import made_up_row, made_up_table, measure_quickly, small_space

KEYS = keys_for(small_space((32,)), {"tpot": Workload(context=12)}, "float32")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_quickly(monkeypatch, looks=2)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """The keys that were measured, which takes no time."""
    keys: list[Key] = []

    def measure(self: Profiler, key: Key) -> Row:
        keys.append(key)
        return made_up_row(key)

    monkeypatch.setattr(Profiler, "measure", measure)
    return keys


@pytest.mark.parametrize("stop", [1, 3, len(KEYS), len(KEYS) + 2])
def test_resumes_without_measuring_again(tmp_path: Path, measured: list[Key], stop: int) -> None:
    path = tmp_path / "t.parquet"

    def interrupt(done: int, total: int, row: Row | None) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profiler.build(KEYS, path, device="cpu", progress=interrupt)
    assert [row.key for row in Journal(path).read()[1]] == measured == (2 * KEYS)[:stop]
    with Journal(path).path.open("a") as file:
        file.write('{"phase": "deco')  # killed while it wrote
    started: list[int] = []
    table = profiler.build(KEYS, path, device="cpu", progress=lambda done, total, row: started.append(done))
    assert started == list(range(stop, 2 * len(KEYS) + 1))
    assert measured == 2 * KEYS
    assert load_table(path) == table
    profiler.build(KEYS, path, device="cpu")
    assert measured == 2 * KEYS
    assert list(tmp_path.iterdir()) == [path]


def test_a_journal_grows_by_the_same_for_every_row(tmp_path: Path, measured: list[Key]) -> None:
    sizes: list[int] = []
    path = tmp_path / "t.parquet"
    profiler.build(
        KEYS, path, device="cpu", progress=lambda *now: sizes.append(Journal(path).path.stat().st_size if now[2] else 0)
    )
    added = [after - before for before, after in pairwise(sizes[1:-1])]
    assert max(added) < 1.5 * min(added)


def test_tables_of_other_devices_in_the_file_stay(tmp_path: Path, measured: list[Key]) -> None:
    path = tmp_path / "t.parquet"
    other = made_up_table(KEYS[:2])
    write_tables(path, [other])
    table = profiler.build(KEYS, path, device="cpu")
    assert read_tables(path) == {"test-device": other, table.provenance.device: table}


@pytest.mark.parametrize(("field", "value"), [("driver", "1"), ("torch", "1.0"), ("threads", 99)])
def test_rows_of_another_origin_are_not_mixed(tmp_path: Path, measured: list[Key], field: str, value: object) -> None:
    path = tmp_path / "t.parquet"
    table = profiler.build(KEYS[:1], path, device="cpu")
    table.provenance = dataclasses.replace(table.provenance, **{field: value})  # type: ignore[arg-type]
    save_table(table, path)
    content = path.read_bytes()
    with pytest.raises(TableError, match=rf"rows that new ones cannot join \({field} {value}, now .*another file"):
        profiler.build(KEYS, path, device="cpu")
    assert path.read_bytes() == content
    path.unlink()
    with Journal(path) as journal:
        journal.start(table.provenance)
    with pytest.raises(TableError, match=rf"\({field} {value}, now .*and t.parquet.journal, if it is there"):
        profiler.build(KEYS, path, device="cpu")
    assert measured == 2 * KEYS[:1]


def test_rows_of_other_code_are_measured_anew_and_no_others(tmp_path: Path, measured: list[Key]) -> None:
    path = tmp_path / "t.parquet"
    table = made_up_table([*KEYS[:-1], dataclasses.replace(KEYS[0], batch=9)])
    stale = [key for key in KEYS[:-1] if key.block.startswith("D")]
    for key in [*stale, dataclasses.replace(KEYS[0], batch=9)]:  # of which the last is not asked for
        table.add(made_up_row(key, 1e-9, code="0" * 12))
    table.provenance = dataclasses.replace(provenance("cpu"), date="2001-01-01", nfsearch="0")
    save_table(table, path)
    with Journal(path) as journal:
        journal.start(provenance("cpu"))
        journal.add(made_up_row(KEYS[-1]))
        journal.add(made_up_row(KEYS[-1], code="0" * 12))  # counts as not measured
    again = profiler.build(KEYS, path, device="cpu")
    assert Counter(measured) == {**dict.fromkeys(stale, 2), KEYS[-1]: 1}
    assert again.stale(KEYS) == []
    assert len(again.stale()) == 1
    assert again.provenance.date > "2001-01-01"  # a check of the rows before says nothing about these


def test_date_and_command_may_differ(tmp_path: Path, measured: list[Key]) -> None:
    path = tmp_path / "t.parquet"
    table = profiler.build(KEYS[:1], path, device="cpu")
    table.provenance = dataclasses.replace(table.provenance, date="2001-01-01", command="other", clock_mhz=3.0)
    save_table(table, path)
    profiler.build(KEYS, path, device="cpu")
    assert measured == 2 * KEYS[:1] + 2 * KEYS[1:]


def test_the_faster_of_two_looks_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([3.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr(
        Profiler, "measure", lambda self, key: dataclasses.replace(made_up_row(key), latency_ms=next(times))
    )
    table = profiler.build(KEYS[:2], tmp_path / "t.parquet", device="cpu")
    assert [table.rows[key].latency_ms for key in KEYS[:2]] == [2.0, 1.0]
    assert load_table(tmp_path / "t.parquet") == table


def test_folder_that_cannot_be_written_shows_before_the_work(tmp_path: Path, measured: list[Key]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        profiler.build(KEYS, tmp_path / "file" / "t.parquet", device="cpu")
    assert measured == []


def test_absent_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device 'nvidia-b9000' is not here; this machine has"):
        profiler.build(KEYS, tmp_path / "t.parquet", device="nvidia-b9000")
    assert not list(tmp_path.iterdir())


# --- a machine that does something else ------------------------------------------------------------------------------


@pytest.fixture
def disturbances(monkeypatch: pytest.MonkeyPatch) -> dict[Key, list[float]]:
    """What disturbs the looks at a key, one after the other; those that are not told of are quiet. A look takes as many
    milliseconds as there were looks at its key before, and one."""
    told: dict[Key, list[float]] = {}
    looks: Counter[Key] = Counter()

    def measure(self: Profiler, key: Key) -> Row:
        looks[key] += 1
        rest = told.get(key, [])
        return made_up_row(key, float(looks[key]), disturbance=rest.pop(0) if rest else 0.0)

    monkeypatch.setattr(rows, "QUIET", profiler.QUIET)
    monkeypatch.setattr(Profiler, "measure", measure)
    return told


def looks_at(path: Path, key: Key) -> int:
    return sum(row.key == key for row in Journal(path).read()[1])


def test_disturbed_looks_are_made_again_until_as_many_are_quiet_as_are_asked_for(
    tmp_path: Path, disturbances: dict[Key, list[float]]
) -> None:
    disturbances |= {KEYS[0]: [0.5, 0.5, 0.3], KEYS[1]: [0.5, 0.0, 0.5]}
    made: list[Key] = []
    table = profiler.build(
        KEYS, tmp_path / "t.parquet", device="cpu", progress=lambda done, total, row: made.append(row.key) if row else 0
    )
    assert Counter(made) == {key: {KEYS[0]: 5, KEYS[1]: 4}.get(key, 2) for key in KEYS}
    assert [(table.rows[key].latency_ms, table.rows[key].disturbance) for key in KEYS[:2]] == [(4.0, 0.0), (2.0, 0.0)]
    assert table.disturbance() == ""


def test_after_three_more_looks_the_least_disturbed_is_kept_and_marked(
    tmp_path: Path, disturbances: dict[Key, list[float]]
) -> None:
    disturbances[KEYS[0]] = [0.5, 0.4, 0.9, 0.3, 0.6, 0.0]  # of which the last is not reached
    counts: list[tuple[int, int]] = []
    table = profiler.build(
        KEYS, tmp_path / "t.parquet", device="cpu", progress=lambda *now: counts.append((now[0], now[1]))
    )
    assert disturbances[KEYS[0]] == [0.0]
    assert (table.rows[KEYS[0]].latency_ms, table.rows[KEYS[0]].disturbance) == (4.0, 0.3)
    assert load_table(tmp_path / "t.parquet").disturbance() == (
        f"1 of {len(KEYS)} rows were measured while something else used the machine"
    )
    text = io.StringIO()
    plain_console(width=200, file=text).print(render(table))
    assert text.getvalue().count("~") == 2  # at the row, and in the caption
    assert max(counts) == counts[-1] == (2 * len(KEYS), 2 * len(KEYS))


def test_a_busy_machine_makes_no_table_and_keeps_what_was_quiet(
    tmp_path: Path, disturbances: dict[Key, list[float]]
) -> None:
    path = tmp_path / "t.parquet"
    assert len(KEYS) == 5
    disturbances |= {KEYS[0]: [0.5] * 5, KEYS[2]: [0.6] * 5, KEYS[3]: [0.7] * 5}
    with pytest.raises(Busy, match=r"3 of 5 rows could not be .*up to 70%.*same command.*'latency.accept=\[busy\]'"):
        profiler.build(KEYS, path, device="cpu")
    assert list(tmp_path.iterdir()) == [Journal(path).path]
    assert [looks_at(path, key) for key in KEYS] == [5, 2, 5, 5, 2]
    made: list[Key] = []
    table = profiler.build(
        KEYS, path, device="cpu", progress=lambda done, total, row: made.append(row.key) if row else 0
    )
    assert made == 2 * [KEYS[0], KEYS[2], KEYS[3]]
    assert table.disturbance() == ""
    assert load_table(path) == table


def test_a_busy_machine_is_accepted_by_name(tmp_path: Path, disturbances: dict[Key, list[float]]) -> None:
    disturbances |= {key: [0.5] * 4 + [0.4] for key in KEYS}
    table = profiler.build(KEYS, tmp_path / "t.parquet", device="cpu", accept=["busy"])
    assert [row.disturbance for row in table.rows.values()] == [0.4] * len(KEYS)


def test_what_a_busy_machine_measured_is_taken_as_it_is(tmp_path: Path, disturbances: dict[Key, list[float]]) -> None:
    path = tmp_path / "t.parquet"
    disturbances |= {key: [0.5] * 4 + [0.4] for key in KEYS}
    with pytest.raises(Busy):
        profiler.build(KEYS, path, device="cpu")
    made: list[Row | None] = []
    table = profiler.build(
        KEYS, path, device="cpu", accept=["busy"], progress=lambda done, total, row: made.append(row)
    )
    assert made == [None]
    assert [row.disturbance for row in table.rows.values()] == [0.4] * len(KEYS)


def test_killed_while_something_disturbs_it_goes_on(tmp_path: Path, disturbances: dict[Key, list[float]]) -> None:
    path = tmp_path / "t.parquet"
    disturbances[KEYS[0]] = [0.5, 0.5, 0.5]

    def stop(done: int, total: int, row: Row | None) -> None:
        if row and row.latency_ms == 3.0:  # the first look that is made again
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profiler.build(KEYS, path, device="cpu", progress=stop)
    assert [looks_at(path, key) for key in KEYS] == [3, 2, 2, 2, 2]
    made: list[Key] = []
    table = profiler.build(
        KEYS, path, device="cpu", progress=lambda done, total, row: made.append(row.key) if row else 0
    )
    assert made == 2 * KEYS[:1]
    assert table.rows[KEYS[0]].disturbance == 0.0
