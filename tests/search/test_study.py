from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest

from nfsearch.search import Limits
from nfsearch.search.loop import Loop
from nfsearch.search.pareto import members
from nfsearch.search.study import Store, create_study, load_store, open_store
from nfsearch.support.metrics import Measurement
from tests.search.fakes import METRICS, OBJECTIVES, FakeProxy, HandExecutor, search, strategy

FINGERPRINT = {"seed": 0, "space": {"layers": "A"}}


def new_store(storage: str | Path, name: str = "run", meta: dict[str, Any] | None = None, **arguments: Any) -> Store:
    """Of a study that is made for it."""
    objectives = [METRICS[name] for name in OBJECTIVES]
    unique = create_study(storage, name, objectives=objectives, fingerprint=FINGERPRINT, meta=meta)
    return again(storage, unique, **arguments)


def again(storage: str | Path, name: str | None = None, **changes: Any) -> Store:
    return open_store(storage, name, **{"metrics": METRICS, "fingerprint": FINGERPRINT, **changes})


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """The study of a run with ten candidates, one of which failed."""
    path = tmp_path / "study.journal"
    with new_store(path, meta={"config": {"a": [1, None]}}) as store:
        for candidate in search(strategy(), 10, losses=lambda index: None if index == 3 else 1.0 + index):
            store.add(candidate)
    return path


@pytest.mark.parametrize("url", ["study.journal", "sqlite:///{}/study.db"])
def test_candidates_come_back_as_they_were(tmp_path: Path, url: str) -> None:
    storage = url.format(tmp_path) if "://" in url else tmp_path / url
    chosen = strategy(crossover=0.5)
    found = search(chosen, 10, losses=lambda index: None if index == 3 else 1.0 + index)
    with new_store(storage) as store:
        for candidate in found:
            store.add(candidate)
        assert store.candidates() == [*found]
    known = load_store(storage, "run")
    assert known.candidates() == [*found]
    assert [list(c.proposal.answers) for c in known.candidates()] == [list(c.proposal.answers) for c in found]
    assert known.objectives == OBJECTIVES


def test_a_search_goes_on_after_confirmations_and_does_not_see_them(tmp_path: Path) -> None:
    chosen = strategy(evaluations=6)
    found = search(chosen, 6)
    confirmed = replace(found[1], number=4, proposal=replace(found[1].proposal, confirms=1))
    with new_store(tmp_path / "study.journal") as store:
        for candidate in (*found[:4], confirmed):
            store.add(candidate)
        loop = Loop(chosen, store, HandExecutor(FakeProxy(), 1), Limits(), evaluations=6)
        assert [*loop.history] == found[:4]
        loop.run()
        assert [each.number for each in store.candidates()] == [0, 1, 2, 3, 5, 6]
        assert [each.proposal for each in store.candidates()[:5]] == [each.proposal for each in found[:5]]
    assert load_store(tmp_path / "study.journal").confirmations() == [confirmed]


@pytest.mark.parametrize("number", [-(2**63), 4, 7])
def test_a_confirmation_of_no_candidate_is_refused_by_name(tmp_path: Path, number: int) -> None:
    found = search(strategy(evaluations=4), 4)
    stray = replace(found[1], number=4, proposal=replace(found[1].proposal, confirms=number))
    with new_store(tmp_path / "study.journal") as store:
        for candidate in (*found, stray):
            store.add(candidate)
        with pytest.raises(ValueError, match=f"trial 4 of the study confirms candidate {number}, which the study does"):
            store.confirmations()


def test_what_people_see_of_a_study_is_named_short_and_in_their_units(journal: Path) -> None:
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    study = optuna.load_study(study_name="run", storage=optuna.storages.JournalStorage(backend))
    assert study.metric_names == ["loss (nats)", "tpot (ms)"]
    assert len(study.trials) == 10
    assert study.trials[3].state == optuna.trial.TrialState.FAIL
    assert study.best_trials
    first, found = study.trials[0], load_store(journal).candidates()[0]
    assert first.values == [1.0, found.value("tpot") * 1e3]
    assert first.user_attrs["notation"] == found.proposal.architecture.notation
    assert study.trials[3].user_attrs["error"] == "the loss is nan"
    for attributes in (study.user_attrs, *(trial.user_attrs for trial in study.trials)):
        assert max((len(str(value)) for value in attributes.values()), default=0) <= 100


def test_answers_are_params_where_their_choices_are_known(tmp_path: Path) -> None:
    chosen = strategy(crossover=0.5)

    def choices(answers: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
        return {question.name: question.options for question in chosen.space.build(answers).questions}

    found = search(chosen, 10)
    with new_store(tmp_path / "s", choices=choices) as store:
        for candidate in found:
            store.add(candidate)
        trials = store._study.trials
    assert [trial.params for trial in trials] == [c.proposal.answers for c in found]
    assert trials[0].distributions["width"] == optuna.distributions.CategoricalDistribution((128, 256))


def test_meta(journal: Path) -> None:
    assert load_store(journal).meta["config"] == {"a": [1, None]}
    with again(journal, meta={"config": {"b": 2}}) as store:
        store.set_meta("ended", "early")
        with pytest.raises(ValueError, match="JSON"):
            store.set_meta("table", {"worst": [float("inf")]})
    assert load_store(journal).meta["config"] == {"b": 2}
    assert load_store(journal).meta["ended"] == "early"
    assert "table" not in load_store(journal).meta


def test_a_run_is_not_overwritten(journal: Path) -> None:
    before = journal.read_bytes()
    with pytest.raises(ValueError, match="is there already"):
        new_store(journal)
    assert journal.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": {**FINGERPRINT, "seed": 5}}, "seed was 0 and is now 5"),
        ({"fingerprint": {"seed": 0}}, r"space\.layers was .* and is now null"),
    ],
)
@pytest.mark.parametrize("candidates", [True, False])
def test_resuming_something_else_is_refused(
    journal: Path, tmp_path: Path, changes: dict[str, Any], message: str, candidates: bool
) -> None:
    if not candidates:
        journal = tmp_path / "new.journal"
        new_store(journal).close()
    with pytest.raises(ValueError, match=message):
        again(journal, **changes)


@pytest.mark.parametrize("cut", [1, 40, 900])
def test_torn_last_record_is_dropped(journal: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    content = journal.read_bytes()
    found = load_store(journal).candidates()
    journal.write_bytes(content[:-cut])
    assert load_store(journal).candidates() == found[:9]  # reading changes nothing
    assert journal.read_bytes() == content[:-cut]
    with again(journal) as store:
        assert "cut short" in caplog.text
        assert store.candidates() == found[:9]
        store.add(found[9])
    assert load_store(journal).candidates() == found


@pytest.mark.parametrize(
    "damage", [b"\0" * 20 + b"\n", b"{}\n", b"[1, 2]\n", b"{'op_code': 4}\n", b"[" * 200_000 + b"\n"]
)
def test_damage_is_named(journal: Path, damage: bytes) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:4], damage, *lines[5:]]))
    for attempt in (lambda: again(journal), lambda: load_store(journal)):
        with pytest.raises(ValueError, match=r"study.journal, line 5: expected a record"):
            attempt()


def changed(journal: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the record of the first candidate."""
    lines = journal.read_bytes().splitlines()
    place = next(place for place, line in enumerate(lines) if b'"op_code":4' in line)
    record = json.loads(lines[place])
    change(record)
    lines[place] = json.dumps(record).encode()
    journal.write_bytes(b"".join(line + b"\n" for line in lines))


def test_a_record_that_lacks_all(journal: Path) -> None:
    changed(journal, lambda record: [record.pop(key) for key in list(record) if key != "op_code"])
    for attempt in (lambda: again(journal), lambda: load_store(journal)):
        with pytest.raises(ValueError, match="cannot open the study"):
            attempt()


@pytest.mark.parametrize(
    "change",
    [
        lambda kept: kept.clear(),
        lambda kept: kept["evaluation"].update(curve=[[math.inf, 1.0]]),
        lambda kept: kept["evaluation"].update(metrics={"loss": [math.inf, 0.0]}),
        lambda kept: kept["evaluation"].update(metrics={"loss": ["low", 0.0]}),
        lambda kept: kept["architecture"].update(layers=[[]]),
        lambda kept: kept["architecture"].update(width=None),
        lambda kept: kept["fidelity"].update(tokens="many"),
        lambda kept: kept.update(costs={"tpot": "fast"}),
        lambda kept: kept.update(answers=[]),
        lambda kept: kept.update(parents=None),
        lambda kept: kept.update(more=1),
    ],
)
def test_a_trial_that_is_no_candidate(journal: Path, change: Callable[[dict[str, Any]], None]) -> None:
    changed(journal, lambda record: change(record["system_attrs"]["nfsearch"]))
    with pytest.raises(ValueError, match=r"trial 0 of the study is not a candidate"):
        load_store(journal).candidates()


def test_what_is_infinite_reaches_neither_values_nor_json(journal: Path) -> None:
    first = load_store(journal).candidates()[0]
    assert first.evaluation
    curve, unknown = ((50, math.inf), (100, 2.0)), {"loss": Measurement(2.0, math.inf)}
    diverged = replace(first, number=10, evaluation=replace(first.evaluation, metrics=unknown, curve=curve))
    with again(journal) as store:
        store.add(diverged)
        for broken in (Measurement(math.inf), Measurement(math.nan)):
            with pytest.raises(ValueError, match="finite"):
                store.add(replace(first, number=11, evaluation=replace(first.evaluation, metrics={"loss": broken})))
    assert load_store(journal).candidates()[10] == diverged
    for line in journal.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_a_full_disk_leaves_no_part_of_a_record(journal: Path) -> None:
    before, found = journal.read_bytes(), load_store(journal).candidates()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with again(journal) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
        try:
            with pytest.raises(OSError, match=r"File too large: .*study\.journal"):
                store.add(replace(found[0], number=10))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert journal.read_bytes() == before
        store.add(replace(found[0], number=10))
    assert len(load_store(journal).candidates()) == 11


@pytest.mark.parametrize(("record", "version"), [(b'{"format":1}', 1), (b'{"formed":2}', 1), (b'{"format":5}', 5)])
def test_a_run_of_another_format_is_refused(journal: Path, record: bytes, version: int) -> None:
    journal.write_bytes(journal.read_bytes().replace(b'{"format":4}', record))
    for attempt in (lambda: again(journal), lambda: load_store(journal)):
        with pytest.raises(ValueError, match=rf"another version of nfsearch \(format {version}, this one reads 4\)"):
            attempt()


def test_one_architecture_has_many_seeds_and_budgets(tmp_path: Path) -> None:
    first, *_ = search(strategy(), 1)
    job = first.proposal.job
    jobs = [job, replace(job, seed=1), replace(job, fidelity=replace(job.fidelity, tokens=200))]
    assert first.evaluation
    passed = replace(first.evaluation, rungs=((50, 3.5), (100, 3.0)))
    found = [
        replace(first, number=i, proposal=replace(first.proposal, job=each), evaluation=passed)
        for i, each in enumerate(jobs)
    ]
    assert len({each.digest for each in jobs}) == 3
    assert jobs[0].fidelity < jobs[2].fidelity
    with new_store(tmp_path / "s") as store:
        for candidate in found:
            store.add(candidate)
    assert load_store(tmp_path / "s").candidates() == found
    assert [each.number for each in members(found, OBJECTIVES, Limits())] == [2]  # never beside cheaper ones


def test_one_writer(journal: Path) -> None:
    with again(journal):
        with pytest.raises(ValueError, match="is being written by another process"):
            again(journal)
        assert len(load_store(journal).candidates()) == 10  # reading is fine
    again(journal).close()


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
        new_store("nosuchdb://x/y")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    optuna.create_study(storage=other, study_name="s")
    with pytest.raises(ValueError, match="holds the study 's', which is not one of nfsearch"):
        load_store(other, "s")


def test_a_study_that_was_killed_while_it_was_made_is_refused(journal: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    whole = next(number for number, line in enumerate(lines) if b'"format"' in line)  # it is written last
    assert whole > 3
    for kept in range(whole):
        journal.write_bytes(b"".join(lines[:kept]))
        with pytest.raises(ValueError, match=r"holds no run|not one of nfsearch|another version"):
            load_store(journal)


def test_numbers_follow_each_other(tmp_path: Path) -> None:
    found = search(strategy(), 2)
    with new_store(tmp_path / "s") as store, pytest.raises(RuntimeError, match="number 0 comes next"):
        store.add(found[1])
