"""One training, several budgets: what is measured on the way and what is gone on with equal what was never stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import SafetensorError

from nfsearch.ops.model import HybridLM
from nfsearch.proxies import Evaluation, Job
from nfsearch.proxies import trainer as trainer_module
from nfsearch.proxies.checkpoints import Checkpoints, Trunk
from nfsearch.proxies.data import Corpus
from nfsearch.proxies.schedule import Schedule
from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.trainer import train_model
from nfsearch.support.notes import listening
from tests.proxies.small import SMALL, architecture, evaluated, loss_of

LONG = SMALL.model_copy(update={"tokens": 24 * 64, "decay": 0.25, "warmup": 0.1})
RUNGS = (8 * 64, 16 * 64)
LAYERS = "A[head_dim=16] D[head_dim=16] F"


def trained(corpus: Corpus, settings: TrainingSettings, tokens: int, folder: Path | None = None) -> Evaluation:
    checkpoints = None if folder is None else Checkpoints(folder)
    return evaluated(
        architecture(LAYERS), corpus, settings, seed=1, device="cpu", tokens=tokens, checkpoints=checkpoints
    )


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_rungs_are_budgets_of_their_own_and_leave_the_end_as_it_is(corpus: Corpus, optimizer: Any) -> None:
    settings = LONG.model_copy(update={"optimizer": optimizer})
    alone = {tokens: trained(corpus, settings, tokens) for tokens in (*RUNGS, settings.tokens)}
    together = trained(corpus, settings.model_copy(update={"rungs": RUNGS}), settings.tokens)
    assert together.rungs == tuple((tokens, loss_of(alone[tokens])) for tokens in RUNGS)
    assert (together.metrics, together.curve) == (alone[settings.tokens].metrics, alone[settings.tokens].curve)
    assert loss_of(alone[RUNGS[0]]) > loss_of(together)


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_stopping_at_a_rung_and_going_on_equals_not_having_stopped(
    corpus: Corpus, tmp_path: Path, optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = LONG.model_copy(update={"optimizer": optimizer})
    whole = trained(corpus, settings, settings.tokens)
    trained(corpus, settings, RUNGS[0], tmp_path)
    steps = []
    honest = trainer_module.batch
    monkeypatch.setattr(trainer_module, "batch", lambda *a: steps.append(a[2]) or honest(*a))
    longer = trained(corpus, settings, settings.tokens, tmp_path)
    assert (longer.metrics, longer.curve, longer.tokens) == (whole.metrics, whole.curve, whole.tokens)
    assert steps == list(range(6, 24))  # from the branch of the first budget, eight steps of which the last two decayed
    again = trained(corpus, settings.model_copy(update={"rungs": RUNGS}), settings.tokens, tmp_path)
    assert again.metrics == whole.metrics  # a rung that was passed unmeasured is measured from an earlier start
    assert [tokens for tokens, _ in again.rungs] == list(RUNGS)


@pytest.mark.parametrize("stop", [3, 7, 10, 15, 19])
def test_killed_between_rungs_at_most_one_rung_is_lost(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    settings = LONG.model_copy(update={"rungs": RUNGS})
    expected = trained(corpus, settings, settings.tokens)
    honest, seen = trainer_module.batch, []

    def dying(*a: Any) -> Any:
        seen.append(a[2])
        if len(seen) == stop:
            raise KeyboardInterrupt
        return honest(*a)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "batch", dying)
        with pytest.raises(KeyboardInterrupt):
            trained(corpus, settings, settings.tokens, tmp_path)
    with monkeypatch.context() as patch:
        seen.clear()
        patch.setattr(trainer_module, "batch", lambda *a: seen.append(a[2]) or honest(*a))
        found = trained(corpus, settings, settings.tokens, tmp_path)
    assert (found.metrics, found.curve, found.rungs) == (expected.metrics, expected.curve, expected.rungs)
    assert min(seen) == (0 if stop <= 6 else 6 if stop <= 14 else 12)


@pytest.mark.parametrize("stop", [2, 5, 8, 11, 20, 26])  # in the trunk, in the decays of both rungs, and in the last
def test_killed_anywhere_no_more_is_lost_than_since_the_last_checkpoint(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    settings = LONG.model_copy(update={"rungs": RUNGS})
    honest, seen = trainer_module.batch, []

    def noted(*a: Any) -> Any:
        if len(seen) == dies:
            raise KeyboardInterrupt
        seen.append(a[2])
        return honest(*a)

    monkeypatch.setattr(trainer_module, "batch", noted)
    dies = -1
    expected = trained(corpus, settings, settings.tokens)
    order = list(seen)
    monkeypatch.setattr(trainer_module, "_APART", 0.0)
    monkeypatch.setattr(trainer_module, "_TIMES", 0)  # so one after each step
    seen.clear()
    dies = stop
    with pytest.raises(KeyboardInterrupt):
        trained(corpus, settings, settings.tokens, tmp_path)
    seen.clear()
    dies = -1
    found = trained(corpus, settings, settings.tokens, tmp_path)
    assert (found.metrics, found.curve, found.rungs) == (expected.metrics, expected.curve, expected.rungs)
    assert seen == order[stop:]
    assert not list(tmp_path.glob("decay-*"))


def test_weights_are_kept_and_read_back(corpus: Corpus, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    model, _ = train_model(architecture(), corpus, LONG, seed=0, device="cpu", checkpoints=checkpoints)
    other = HybridLM(architecture())
    assert not checkpoints.load_weights(7, other)
    assert checkpoints.load_weights(LONG.tokens, other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    with pytest.raises(OSError, match=r"safetensors is damaged \(it and the model do not both have blocks\."):
        checkpoints.load_weights(LONG.tokens, HybridLM(architecture("F")))


def test_jobs_that_differ_in_tokens_alone_share_a_training(corpus: Corpus, tmp_path: Path) -> None:
    job = Job(architecture(), LONG.fidelity(corpus.digest, "cpu"))
    longer = replace(job, fidelity=LONG.fidelity(corpus.digest, "cpu", 99))
    assert Checkpoints.of(tmp_path, job).folder == Checkpoints.of(tmp_path, longer).folder
    for other in (replace(job, seed=1), replace(job, architecture=architecture("F"))):
        assert Checkpoints.of(tmp_path, other).folder != Checkpoints.of(tmp_path, job).folder


def test_a_damaged_trunk_is_named(corpus: Corpus, tmp_path: Path) -> None:
    Checkpoints(tmp_path).save(Trunk(2, {"x": torch.ones(3)}, [1.0, 2.0]))
    path = tmp_path / "trunk.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(OSError, match=r"trunk\.safetensors is damaged .*delete it"):
        trained(corpus, LONG, LONG.tokens, tmp_path)


def test_losses_are_kept_by_budget(corpus: Corpus, tmp_path: Path) -> None:
    found = trained(corpus, LONG.model_copy(update={"rungs": RUNGS[:1]}), LONG.tokens, tmp_path)
    kept = json.loads((tmp_path / "losses.json").read_text())
    assert kept == {str(RUNGS[0]): found.rungs[0][1], str(LONG.tokens): loss_of(found)}


# --- the schedule ----------------------------------------------------------------------------------------------------


def test_a_trunk_rises_stays_and_falls_to_zero() -> None:
    settings = TrainingSettings(tokens=100 * 64, sequence=32, batch=2, learning_rate=1.0, warmup=0.1, decay=0.2)
    short, long = Schedule.of(settings, 100 * 64), Schedule.of(settings, 400 * 64)
    assert (short.steps, short.branch, long.steps, long.branch) == (100, 80, 400, 320)
    rates = [short.rate(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < 0.2
    assert set(rates[10:81]) >= {1.0}
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert 0 < rates[-1] < 0.1
    assert [long.rate(step) for step in range(80)] == rates[:80]  # the same trunk
    assert long.rate(300) == 1.0


def test_a_cosine_falls_to_a_tenth() -> None:
    settings = TrainingSettings(tokens=100 * 64, sequence=32, batch=2, learning_rate=1.0, warmup=0.1, schedule="cosine")
    schedule = Schedule.of(settings, settings.tokens)
    rates = [schedule.rate(step) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert 0 < rates[0] < 0.2
    assert rates[10] == max(rates) == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rungs": [200, 100]}, "expected rising numbers of tokens"),
        ({"rungs": [100, 100]}, "expected rising numbers of tokens"),
        ({"rungs": [12_000_000]}, "the last rung, 12,000,000 tokens, is not below `tokens`, 12,000,000"),
        ({"rungs": [100], "schedule": "cosine"}, "rungs need `schedule: trunk`"),
        ({"rungs": [0]}, "greater than 0"),
    ],
)
def test_rungs_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingSettings(**changes)


def test_a_loss_is_worth_having_where_nothing_can_be_kept(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    monkeypatch.setattr("nfsearch.proxies.checkpoints.write_atomically", lambda *_: (tmp_path / "no/x").write_text(""))
    settings = LONG.model_copy(update={"rungs": RUNGS})
    with listening() as said:
        found = trained(corpus, settings, settings.tokens, tmp_path / "kept")
    assert loss_of(found) == loss_of(trained(corpus, settings, settings.tokens))
    assert any("what was trained could not be kept" in text and "No space left" in text for text in said)
    assert not list((tmp_path / "kept").iterdir())
