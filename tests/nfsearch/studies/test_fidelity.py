"""The trainings of a fidelity study: which, in which order, done once, whatever is stopped or shared."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from nfsearch.proxies import Evaluation, Job, TooLarge
from nfsearch.proxies.training import TrainingProxy
from nfsearch.run.tables import budgets_of, given_table
from nfsearch.studies import journal, report
from nfsearch.studies.config import StudyConfig, load_study
from nfsearch.studies.draw import draw, operators, read_architectures
from nfsearch.studies.fidelity import study_fidelity
from nfsearch.studies.results import results
from nfsearch.studies.training import Clock, trainings
from nfsearch.support.errors import WorkFailed
from tests.nfsearch.runs import kill_group, start
from tests.nfsearch.studies.tiny import STUDY, study_config

LOSSES = 3 * 5 + 5  # of the tiny study: recipes with 3, 1 and 1 budgets; three architectures, one of them twice


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Every job that is evaluated."""
    made: list[Job] = []
    evaluate = TrainingProxy.evaluate

    def noted(self: TrainingProxy, job: Job, report: Any) -> Evaluation:
        made.append(job)
        return evaluate(self, job, report)

    monkeypatch.setattr(TrainingProxy, "evaluate", noted)
    return made


@pytest.fixture(autouse=True)
def _no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds; the study that is left alone has one."""
    monkeypatch.setattr(report, "print_report", lambda folder: None)


def losses(folder: Path) -> dict[Any, float]:
    """By training and budget."""
    return {
        (*training, tokens): entry.evaluation.metrics["loss"].value
        for training, entries in journal.read(folder).items()
        for tokens, entry in entries.items()
        if entry.evaluation
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    assert study_fidelity(study_config(folder), folder / "study", "1/1", []) == 0
    return folder / "study"


def test_every_loss_is_measured_once_and_no_checkpoint_is_left(whole: Path, jobs: list[Job], tmp_path: Path) -> None:
    found = losses(whole)
    assert len(found) == LOSSES
    assert (whole / "report.md").is_file()
    assert not [*(whole / "checkpoints").glob("*")]
    assert study_fidelity(study_config(tmp_path), whole, "1/1", []) == 0
    assert not jobs


def test_a_study_that_was_killed_goes_on_with_what_lacks(
    whole: Path, jobs: list[Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = study_config(tmp_path), tmp_path / "study"
    noted = TrainingProxy.evaluate

    def killed(self: TrainingProxy, job: Job, report: Any) -> Evaluation:
        if len(jobs) == 7:
            raise SystemExit  # as good as kill -9: nothing catches it
        return noted(self, job, report)

    with monkeypatch.context() as patched:
        patched.setattr(TrainingProxy, "evaluate", killed)
        with pytest.raises(SystemExit):
            study_fidelity(config, folder, "1/1", [])
    with (folder / "share-1-of-1.journal").open("a") as file:
        file.write('{"architecture": "of a line that was cut')
    assert len(losses(folder)) == 7
    assert study_fidelity(config, folder, "1/1", []) == 0
    assert losses(folder) == losses(whole)
    assert len(jobs) == LOSSES


def test_kill_9_loses_at_most_the_budget_at_work(whole: Path, tmp_path: Path) -> None:
    config, folder = study_config(tmp_path), tmp_path / "study"
    process = start("study", "fidelity", config, "-o", folder, cwd=tmp_path)
    while process.poll() is None and not (folder.exists() and len(losses(folder)) >= 3):
        time.sleep(0.02)
    kill_group(process)
    before = losses(folder)
    assert len(before) >= 3
    assert study_fidelity(config, folder, "1/1", []) == 0
    assert losses(folder) == losses(whole)
    assert before.items() <= losses(folder).items()


def test_shares_divide_the_work(whole: Path, jobs: list[Job], tmp_path: Path) -> None:
    config, folder = study_config(tmp_path), tmp_path / "study"
    for share in ("2/2", "1/2"):
        assert study_fidelity(config, folder, share, []) == 0
    assert len(jobs) == LOSSES == len({job.digest for job in jobs})
    assert losses(folder) == losses(whole)


def test_one_recipe_is_done_after_the_other_and_the_reference_first(tmp_path: Path) -> None:
    study = load_study(study_config(tmp_path)).study
    config = drawn_from(tmp_path)
    listed = trainings(study, config)
    assert [each.recipe for each in listed] == ["default"] * 5 + ["eager"] * 5 + ["twin"] * 5
    assert [(config.index(each.architecture), each.seed) for each in listed[:5]] == [
        *((number, 0) for number in range(4)),
        (0, 1),
    ]
    parts = [trainings(study, config, (k, 3)) for k in (1, 2, 3)]
    assert sorted(each.name for part in parts for each in part) == sorted(each.name for each in listed)
    assert {each.recipe for each in parts[0]} == set(STUDY["recipes"])


def drawn_from(folder: Path, number: int = 4, **options: Any) -> list[Any]:
    config = load_study(study_config(folder))
    table = given_table(config.run)
    assert table is not None
    budgets = budgets_of(config.run, table)
    asked = {"within": 0.5, "depths": None, "seed": 0, **options}
    return draw(config.run.space.build(257), budgets, {"tpot"}, number=number, **asked)


def test_architectures_keep_the_latency_and_are_spread(tmp_path: Path) -> None:
    config = load_study(study_config(tmp_path))
    table = given_table(config.run)
    assert table is not None
    estimate = budgets_of(config.run, table).estimate
    found = drawn_from(tmp_path, number=12, within=0.6)
    assert len({each.digest for each in found}) == 12
    assert all(1.6e-3 <= estimate(each)["tpot"].value <= 4e-3 for each in found)
    assert {len(each.layers) for each in found} == {1, 2, 3, 4}
    assert len({len(each.layers) for each in found[:4]}) >= 3
    assert {name for each in found for name in operators(each)} == {"A", "D", "M2", "F"}
    assert found == drawn_from(tmp_path, number=12, within=0.6)
    assert all(2 <= len(each.layers) <= 3 for each in drawn_from(tmp_path, within=0.6, depths=(2, 3)))
    with pytest.raises(ValueError, match="have 5 to 5 operators: the study asks for 4"):
        drawn_from(tmp_path, depths=(5, 5))


def test_all_members_of_a_space_can_be_trained_whatever_their_latency(tmp_path: Path, jobs: list[Job]) -> None:
    layers = "D[head_dim=16] | (D[head_dim=16] (F[ratio=2] | F[ratio=2.1])){1}"  # at these widths both F are one size
    space = {"width": [32, 48], "layers": layers, "where": {}}
    config = study_config(
        tmp_path, architectures="all", recipes={"one": {"budgets": [512]}}, reference={"recipe": "one", "tokens": 512}
    )
    options = [f"space={space}", "study.more_seeds=null", "limits={}", "latency.table=auto"]
    assert study_fidelity(config, tmp_path / "study", "1/1", options) == 0
    found = read_architectures(tmp_path / "study")
    assert sorted(str(each.architecture) for each in found) == [
        "D[head_dim=16] @ 32",
        "D[head_dim=16] @ 48",
        "D[head_dim=16] F[ratio=2] @ 32",
        "D[head_dim=16] F[ratio=2] @ 48",
    ]
    assert [job.architecture for job in jobs] == [each.architecture for each in found]
    assert not found[0].latencies
    with pytest.raises(ValueError, match=r"study\.architectures: the space has 2 members: expected 3 to 10,000"):
        study_fidelity(config, tmp_path / "two", "1/1", [*options, "space.layers='D[head_dim=16]'"])
    served = {"width": [32, 48], "layers": "M2[head_dim=16] | A[head_dim=16,rope=0]", "serves": "nemotron_h"}
    for kept in ("space.limits={required: [F]}", f"space={served}"):  # nemotron_h needs an A
        with pytest.raises(ValueError, match=r"study\.architectures: the space has 2 members"):
            study_fidelity(config, tmp_path / "two", "1/1", [*options, kept])


def test_a_training_that_diverges_is_recorded_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: list[Job]
) -> None:
    config, folder = study_config(tmp_path, more_seeds=None), tmp_path / "study"
    noted = TrainingProxy.evaluate

    def diverges(self: TrainingProxy, job: Job, report: Any) -> Evaluation:
        found = noted(self, job, report)
        if job.fidelity.tokens == 1024 and len(job.architecture.layers) == 1:
            raise ArithmeticError("the training loss is nan at step 3")
        return found

    monkeypatch.setattr(TrainingProxy, "evaluate", diverges)
    assert study_fidelity(config, folder, "1/1", []) == 0
    failed = [entry for entries in journal.read(folder).values() for entry in entries.values() if entry.error]
    assert {entry.tokens for entry in failed} == {1024}
    assert failed[0].error == "the training loss is nan at step 3"
    assert all(entry.final for entry in failed)
    assert len(losses(folder)) == 3 * 5 - 2 * len(failed)  # nor is it trained up to the reference
    before = len(jobs)
    assert study_fidelity(config, folder, "1/1", []) == 0
    assert len(jobs) == before


def test_what_fails_otherwise_is_tried_again_and_ends_a_broken_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = study_config(tmp_path), tmp_path / "study"

    def broken(self: TrainingProxy, job: Job, report: Any) -> Evaluation:
        raise RuntimeError("CUDA error: an illegal memory access")

    with monkeypatch.context() as patched:
        patched.setattr(TrainingProxy, "evaluate", broken)
        with pytest.raises(WorkFailed, match="3 trainings in a row failed"):
            study_fidelity(config, folder, "1/1", [])
    assert sum(len(entries) for entries in journal.read(folder).values()) == 3
    assert study_fidelity(config, folder, "1/1", []) == 0
    assert len(losses(folder)) == LOSSES


def test_what_is_too_large_here_says_nothing_of_the_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: list[Job]
) -> None:
    config, folder = study_config(tmp_path, more_seeds=None), tmp_path / "study"

    def refuses(self: TrainingProxy, job: Job, report: Any) -> Evaluation:
        raise TooLarge("a model needs 9 GB, and 8 GB are there")

    with monkeypatch.context() as patched:
        patched.setattr(TrainingProxy, "evaluate", refuses)
        assert study_fidelity(config, folder, "1/1", []) == 0
    frame = results(read_architectures(folder), journal.read(folder))
    assert frame["state"].tolist() == ["failed"] * 9  # of three architectures by three recipes, none left out
    assert frame["loss"].isna().all()
    assert study_fidelity(config, folder, "1/1", ["study.recipes={default: {budgets: [512]}}"]) == 0
    assert len(jobs) == 6


def test_recipes_may_be_added_and_not_be_changed(whole: Path, tmp_path: Path, jobs: list[Job]) -> None:
    folder = tmp_path / "study"
    config = study_config(tmp_path, more_seeds=None)
    assert study_fidelity(config, folder, "1/1", []) == 0
    jobs.clear()
    options = ["study.recipes.slow={budgets: [512], learning_rate: 1e-3}", "study.recipes.twin.budgets=[512, 1024]"]
    assert study_fidelity(config, folder, "1/1", options) == 0
    assert sorted(job.fidelity.twin for job in jobs) == [1, 1, 1, 2, 2, 2]
    for option, name in {
        "study.recipes.eager.learning_rate=1": "study.recipes.eager",
        "study.seed=3": "study.seed",
        "limits.tpot_ms=5": "limits",
    }.items():
        with pytest.raises(ValueError, match=f"holds a study with other {name}"):
            study_fidelity(config, folder, "1/1", [option])
    assert study_fidelity(config, folder, "1/1", ["study.recipes={default: {budgets: [512]}}"]) == 0
    eager = "study.recipes={default: {budgets: [512]}, eager: {budgets: [512], optimizer: adamw}}"
    with pytest.raises(ValueError, match=r"holds losses of another recipe 'eager' \(512 tokens.*give this one another"):
        study_fidelity(config, folder, "1/1", [eager])


def test_all_recipes_read_the_same_tokens_and_keep_their_warm_up(tmp_path: Path) -> None:
    config: StudyConfig = load_study(study_config(tmp_path))
    proxies = {name: config.proxy(name) for name in config.study.recipes}
    assert {proxy.fidelity.data for proxy in proxies.values()} == {proxies["default"].fidelity.data}
    settings = proxies["default"].settings  # type: ignore[attr-defined]
    assert settings.tokens == 2048
    assert settings.tokens * settings.warmup == pytest.approx(1024 * 0.1)


def test_further_seeds_go_to_the_first_architectures_or_to_those_that_are_listed(tmp_path: Path) -> None:
    def seeds(which: str) -> list[list[int]]:
        study = load_study(study_config(tmp_path), [f"study.more_seeds={{architectures: {which}, seeds: 3}}"]).study
        return [list(study.seeds_of(number)) for number in range(3)]

    assert seeds("2") == [[0, 1, 2], [0, 1, 2], [0]]
    assert seeds("[0, 2]") == [[0, 1, 2], [0], [0, 1, 2]]


def test_seconds_are_those_from_the_first_token_on() -> None:
    clock = Clock(lambda tokens: None)
    clock.points = [(500, 10.0), (600, 11.0), (1000, 15.0)]  # 400 tokens were trained on before
    assert clock.whole(7.0) == pytest.approx(7.0 + 400 * 0.01)
    clock.points = [(100, 10.0), (200, 11.0)]
    assert clock.whole(2.0) == pytest.approx(2.0)
    clock.points = []
    assert clock.whole(2.0) == 2.0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("study.recipes.twin.narow=2", "study.recipes.twin.narow: unknown key"),
        ("study.recipes.twin.budgets=[2, 1]", "study.recipes.twin.budgets: expected rising numbers"),
        ("study.recipes.twin.data=bytes", "study.recipes.twin.data: all recipes have that of `proxy:`"),
        ("proxy.warmup=0.5", "study.recipes.default.budgets: the first one ends within the warm-up of 512 tokens"),
        ("study.reference.recipe=fast", "study.reference.recipe: 'fast' is none of default, eager, twin"),
        ("study.reference.tokens=1000", "study.recipes.default.budgets: 1,024 tokens are more than the reference has"),
        ("study.architectures=some", "study.architectures: expected a whole number, found 'some'"),
        ("study.more_seeds.architectures=[0, 3]", "study.more_seeds.architectures.1: expected 0 to 2, the numbers of"),
        ("limits={memory_gb: 1}", "needs a latency in limits"),
        ("study=null", "study: is missing"),
        ("also={mqar: {pairs: 4}}", "also: a study has no use for it"),
    ],
)
def test_what_is_wrong_with_a_config_is_named(tmp_path: Path, option: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"(config\.yaml:\d+|--set)") as said:
        load_study(study_config(tmp_path), [option])
    assert message in str(said.value)


def test_wrong_input_writes_nothing(tmp_path: Path) -> None:
    config = study_config(tmp_path)
    for share in ("0/2", "3/2", "half"):
        with pytest.raises(ValueError, match=f"--share {share}: expected K/N"):
            study_fidelity(config, tmp_path / "study", share, [])
    with pytest.raises(ValueError, match="is not empty, and holds no study"):
        study_fidelity(config, tmp_path, "1/1", [])
    assert not (tmp_path / "study").exists()


def test_a_damaged_folder_is_named(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "architectures.json").write_text('[{"width": 3}]')
    with pytest.raises(ValueError, match=r"architectures\.json is damaged"):
        read_architectures(tmp_path)
    (tmp_path / "share-1-of-1.journal").write_text(json.dumps({"seed": random.random()}) + "\n")
    with pytest.raises(ValueError, match=r"share-1-of-1\.journal:1: no entry"):
        journal.read(tmp_path)


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    with (
        journal.Journal(tmp_path, (1, 2)),
        pytest.raises(ValueError, match="give it another --share"),
        journal.Journal(tmp_path, (1, 2)),
    ):
        pass
