from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from nfsearch.search import Limits
from nfsearch.search.loop import Loop
from nfsearch.search.pareto import members
from nfsearch.search.study import Store, load_store, open_store
from tests.search.fakes import OBJECTIVES, FakeProxy, HandExecutor, search, strategy

FINGERPRINT = {"seed": 0, "space": {"layers": "A"}}


def store_at(storage: str | Path, resume: bool = False, **changes: Any) -> Store:
    arguments = {"objectives": OBJECTIVES, "fingerprint": FINGERPRINT, **changes}
    return open_store(storage, resume=resume, **arguments)


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The study of a run with ten candidates, one of which failed."""
    path = tmp_path / "study.journal"
    with store_at(path, meta={"config": {"a": [1, None]}}) as store:
        for candidate in search(strategy(), 10, losses=lambda index: None if index == 3 else 1.0 + index):
            store.add(candidate)
    return path


@pytest.mark.parametrize("url", ["study.journal", "sqlite:///{}/study.db"])
def test_candidates_come_back_as_they_were(tmp_path: Path, url: str) -> None:
    storage = url.format(tmp_path) if "://" in url else tmp_path / url
    chosen = strategy(crossover=0.5)
    found = search(chosen, 10, losses=lambda index: None if index == 3 else 1.0 + index)
    with store_at(storage) as store:
        for candidate in found:
            store.add(candidate)
        assert store.candidates() == found
    again = load_store(storage)
    assert again.candidates() == found
    assert [list(c.proposal.answers) for c in again.candidates()] == [list(c.proposal.answers) for c in found]
    assert again.objectives == OBJECTIVES


def test_a_search_goes_on_after_confirmations_and_does_not_see_them(tmp_path: Path) -> None:
    chosen = strategy(evaluations=6)
    found = search(chosen, 6)
    confirmed = replace(found[1], number=4, proposal=replace(found[1].proposal, confirms=1))
    with store_at(tmp_path / "study.journal") as store:
        for candidate in (*found[:4], confirmed):
            store.add(candidate)
        loop = Loop(chosen, store, HandExecutor(FakeProxy(), 1), Limits(), evaluations=6)
        assert loop.history == found[:4]
        loop.run()
        assert [each.number for each in store.candidates()] == [0, 1, 2, 3, 5, 6]
        assert [each.proposal for each in store.candidates()[:5]] == [each.proposal for each in found[:5]]
    assert load_store(tmp_path / "study.journal").confirmations() == [confirmed]


def test_optuna_opens_the_study(journal: Path) -> None:
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    study = optuna.load_study(study_name="nfsearch", storage=optuna.storages.JournalStorage(backend))
    assert len(study.trials) == 10
    assert study.trials[3].state == optuna.trial.TrialState.FAIL
    assert study.best_trials
    assert study.trials[0].user_attrs["notation"]


def test_answers_are_params_where_their_choices_are_known(tmp_path: Path) -> None:
    chosen = strategy(crossover=0.5)

    def choices(answers: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        return {question.name: question.options for question in chosen.space.build(answers).questions}

    found = search(chosen, 10)
    with store_at(tmp_path / "s", choices=choices) as store:
        for candidate in found:
            store.add(candidate)
        trials = store._study.trials
    assert [trial.params for trial in trials] == [c.proposal.answers for c in found]
    assert trials[0].distributions["width"] == optuna.distributions.CategoricalDistribution((128, 256))


def test_meta(journal: Path) -> None:
    assert load_store(journal).meta["config"] == {"a": [1, None]}
    with store_at(journal, resume=True, meta={"config": 2}) as store:
        store.set_meta("ended", "early")
    assert load_store(journal).meta["config"] == 2
    assert load_store(journal).meta["ended"] == "early"


def test_a_run_is_not_overwritten(journal: Path) -> None:
    with pytest.raises(ValueError, match=r"10 candidates.*--resume.*--out"):
        store_at(journal)


def test_a_run_without_candidates_starts_anew(tmp_path: Path) -> None:
    store_at(tmp_path / "s", fingerprint={"seed": 1}).close()
    with store_at(tmp_path / "s") as store:
        assert store.meta["fingerprint"]["seed"] == 0
        assert store.candidates() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": {**FINGERPRINT, "seed": 5}}, "seed was 0 and is now 5"),
        ({"objectives": ["loss"]}, r'objectives was ."loss", "tpot". and is now ."loss".'),
        ({"fingerprint": {"seed": 0}}, r"space\.layers was .* and is now null"),
    ],
)
def test_resuming_something_else_is_refused(journal: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store_at(journal, resume=True, **changes)


@pytest.mark.parametrize("cut", [1, 40, 900])
def test_torn_last_record_is_dropped(journal: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    content = journal.read_bytes()
    found = load_store(journal).candidates()
    journal.write_bytes(content[:-cut])
    assert load_store(journal).candidates() == found[:9]  # reading changes nothing
    assert journal.read_bytes() == content[:-cut]
    with store_at(journal, resume=True) as store:
        assert "cut short" in caplog.text
        assert store.candidates() == found[:9]
        store.add(found[9])
    assert load_store(journal).candidates() == found


@pytest.mark.parametrize("damage", [b"\0" * 20 + b"\n", b"{}\n", b"[1, 2]\n", b"{'op_code': 4}\n"])
def test_damage_is_named(journal: Path, damage: bytes) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], damage, *lines[5:]]))
    for attempt in (lambda: store_at(journal, resume=True), lambda: load_store(journal)):
        with pytest.raises(ValueError, match=r"study.journal, line 5: expected a record"):
            attempt()


def test_a_record_that_lacks_a_field(journal: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:6], b'{"op_code":4}\n', *lines[7:]]))
    with pytest.raises(ValueError, match="cannot open the study"):
        store_at(journal, resume=True)
    record = json.loads(lines[6])
    record["user_attrs"] = {}
    journal.write_bytes(b"".join([*lines[:6], json.dumps(record).encode() + b"\n", *lines[7:]]))
    with pytest.raises(ValueError, match=r"trial . of the study is not a candidate"):
        load_store(journal).candidates()


def test_a_run_of_another_format_is_refused(journal: Path) -> None:
    for record in (b'"user_attr":{"format":1}', b'"user_attr":{"formed":2}'):
        content = journal.read_bytes().replace(b'"user_attr":{"format":2}', record)
        other = journal.with_name("other.journal")
        other.write_bytes(content)
        for attempt in (lambda: store_at(other, resume=True), lambda: load_store(other)):  # noqa: B023
            with pytest.raises(ValueError, match=r"another version of nfsearch \(format 1, this one reads 2\)"):
                attempt()


def test_one_architecture_has_many_seeds_and_budgets(tmp_path: Path) -> None:
    first, *_ = search(strategy(), 1)
    job = first.proposal.job
    jobs = [job, replace(job, seed=1), replace(job, fidelity=replace(job.fidelity, tokens=200), continues=job.digest)]
    found = [replace(first, number=i, proposal=replace(first.proposal, job=each)) for i, each in enumerate(jobs)]
    assert len({each.digest for each in jobs}) == 3
    assert jobs[0].fidelity < jobs[2].fidelity
    with store_at(tmp_path / "s") as store:
        for candidate in found:
            store.add(candidate)
    assert load_store(tmp_path / "s").candidates() == found
    assert [each.number for each in members(found, OBJECTIVES, Limits())] == [2]  # never beside cheaper ones


def test_one_writer(journal: Path) -> None:
    script = (
        "import sys; from nfsearch.search.study import open_store as o; o(sys.argv[1], objectives=[], fingerprint={})"
    )
    with store_at(journal, resume=True):
        other = subprocess.run(
            [sys.executable, "-c", script, str(journal)], capture_output=True, text=True, check=False
        )
        assert "is being written by another process" in other.stderr
        assert len(load_store(journal).candidates()) == 10  # reading is fine
    store_at(journal, resume=True).close()


def test_not_a_study(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_store(tmp_path / "none")
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(ValueError, match="line 1: expected a record of an Optuna journal, found 'hello'"):
        load_store(tmp_path / "text")
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="holds no run"):
        load_store(tmp_path / "empty")
    with pytest.raises(ValueError, match="cannot open the study"):
        store_at("nosuchdb://x/y")


def test_numbers_follow_each_other(tmp_path: Path) -> None:
    found = search(strategy(), 2)
    with store_at(tmp_path / "s") as store, pytest.raises(RuntimeError, match="number 0 comes next"):
        store.add(found[1])
