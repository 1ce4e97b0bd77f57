"""Studies in a database: whose they are, who writes them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

from nfsearch.search import lease
from nfsearch.search.study import Store, create_study, load_store, open_store
from tests.search.fakes import METRICS, search, strategy

GONE = 2**22 + 1  # no process has this number: it is above the kernel's largest


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lease, "SETTLE", 0.0)
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "PATIENCE", 1.0)
    return f"sqlite:///{tmp_path / 'studies.db'}"


@pytest.fixture
def store(database: str) -> Iterator[Store]:
    create_study(database, "s", objectives=[*METRICS.values()][:2], fingerprint={"seed": 0})
    with again(database) as store:
        yield store


def again(database: str, name: str = "s") -> Store:
    return open_store(database, name, metrics=METRICS, fingerprint={"seed": 0})


def hold(store: Store, **changes: Any) -> None:
    """Has another process hold the lease, which does not renew it."""
    store._lease._closed.set()  # type: ignore[union-attr]
    store._lease._thread.join()  # type: ignore[union-attr]
    held = store._storage.get_study_system_attrs(store._id)[lease.KEY]
    store._storage.set_study_system_attr(store._id, lease.KEY, {**held, "token": "other", **changes})


def test_runs_of_one_name_are_two_studies(store: Store, database: str) -> None:
    names = [create_study(database, "s", objectives=[*METRICS.values()][:2], fingerprint={"seed": 1}) for _ in range(2)]
    assert names == ["s-2", "s-3"]
    assert set(optuna.get_all_study_names(database)) == {"s", "s-2", "s-3"}
    store.add(search(strategy(), 1)[0])
    assert len(load_store(database, "s").candidates()) == 1
    assert load_store(database, "s-2").candidates() == []
    with pytest.raises(ValueError, match=r"holds no run of nfsearch called 't' \(its studies: s, s-2, s-3\)"):
        load_store(database, "t")


def test_one_process_writes(store: Store, database: str) -> None:
    with pytest.raises(ValueError, match=rf"study 's' is being written by process {os.getpid()} on .*: wait for it"):
        again(database)
    load_store(database, "s")  # reading is fine
    store.close()
    again(database).close()


def test_a_process_that_is_gone_holds_nothing(store: Store, database: str) -> None:
    hold(store, process=GONE)
    again(database).close()


def test_a_number_that_was_given_to_another_process_holds_nothing(store: Store, database: str) -> None:
    hold(store, began="1")
    again(database).close()


def test_a_machine_that_renews_nothing_is_gone(store: Store, database: str, capsys: pytest.CaptureFixture[str]) -> None:
    hold(store, machine="elsewhere", host="node7")
    again(database).close()
    assert (
        f"was being written by process {os.getpid()} on node7; looking for 1 s whether it is" in capsys.readouterr().err
    )


def test_a_machine_that_renews_holds_it(store: Store, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_machine", lambda: "elsewhere")  # from here on
    with pytest.raises(ValueError, match="is being written by process"):
        again(database)


def test_whoever_was_taken_over_from_writes_nothing_more(store: Store, database: str) -> None:
    hold(store, process=GONE)
    with again(database) as other:
        with pytest.raises(RuntimeError, match="was taken over by process"):
            store.add(search(strategy(), 1)[0])
        with pytest.raises(RuntimeError, match="was taken over by process"):
            store.set_meta("status", "failed-to-finish")
        store.close()  # which leaves the lease to the other
        other.add(search(strategy(), 1)[0])
    assert len(load_store(database, "s").candidates()) == 1


def test_reading_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no study"):
        load_store(f"sqlite:///{tmp_path / 'none.db'}", "s")
    assert not (tmp_path / "none.db").exists()
