"""Finalists trained again with other seeds: the statistics, the command, and what it leaves in the files."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy import stats

from nfsearch.export import choose, passed_over
from nfsearch.ops.model import HybridLM
from nfsearch.proxies import trainer
from nfsearch.report.confirmation import Confirmed, best, confirmed_of
from nfsearch.report.result import RunResult
from nfsearch.run import confirm
from nfsearch.search import Candidate, Limits
from nfsearch.search.study import load_store
from nfsearch.support.metrics import Measurement, Metric
from tests.nfsearch.fake_run import fake_candidates, fake_confirmations, make_result

Command = Callable[..., tuple[str, str]]
LOSSES = {3: [2.0, 2.1, 2.2], 7: [2.5, 2.7, 2.6], 9: [2.62, 2.6, 2.64, 2.62]}


def confirmed(losses: dict[int, list[float]], limits: Limits | None = None, times: str = "379") -> Confirmed:
    """The candidates whose numbers are first in `times` are the fastest."""
    order = [int(number) for number in times]
    costs = {number: {"tpot": Measurement(1.0 + order.index(number)), "loss": Measurement(0.0)} for number in losses}
    (found,) = confirmed_of(fake_confirmations(losses), costs, ["loss", "tpot"], limits or Limits())
    return found


def test_means_bars_and_probabilities_are_those_of_students_t() -> None:
    found = confirmed(LOSSES)
    assert [each.number for each in found.finalists] == [3, 7, 9]
    assert found.freedom == 3 + 3 + 4 - 3
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in LOSSES.values())
    assert found.spread == pytest.approx((squares / found.freedom) ** 0.5)
    for finalist in found.finalists:
        group = LOSSES[finalist.number]
        assert finalist.metrics["loss"].value == pytest.approx(statistics.fmean(group))
        bar = stats.t.ppf(0.975, found.freedom) * (found.spread or 0) / len(group) ** 0.5
        assert finalist.metrics["loss"].error == pytest.approx(bar)
        assert finalist.seeds == len(group)
    two = confirmed({number: LOSSES[number] for number in (3, 7)})
    one_sided = stats.ttest_ind(LOSSES[3], LOSSES[7]).pvalue / 2
    assert two.pairs[0].probability == pytest.approx(1 - one_sided)
    assert two.probability(7, 3) == pytest.approx(one_sided)


def test_the_sentence_says_which_order_holds() -> None:
    found = confirmed(LOSSES)
    assert found.order() == "3 is better than 7 with probability >0.99; 7 and 9 cannot be told apart (0.63)."
    assert confirmed({3: [2.0, 2.1]}).order() == "There is one finalist only."
    assert (
        confirmed({3: [2.0], 7: [2.5]}).order()
        == "One other seed each says nothing of the order; two (--seeds 2) would."
    )
    assert confirmed({3: [2.0, 2.0], 7: [2.5, 2.5]}).order() == "3 is better than 7 with probability >0.99."
    assert confirmed({3: [2.0, 2.0], 7: [2.0, 2.0]}).order() == "3 and 7 cannot be told apart (0.50)."


def test_a_finalist_that_another_dominates_leaves_the_front_and_is_told() -> None:
    found = confirmed(LOSSES, times="937")
    assert found.front == [3, 9]
    assert found.fallen(["loss", "tpot"], list(LOSSES)) == [
        "7 leaves the front: 3 is as good or better in everything (in loss with probability >0.99)."
    ]
    assert found.fallen(["loss", "tpot"], [3, 9]) == []  # 7 never was on it
    assert confirmed(LOSSES, times="973").front == [3, 7, 9]
    limit = Limits({"loss": 2.3}, {"loss": Metric("loss")})
    assert confirmed(LOSSES, limit).front == [3]
    assert confirmed(LOSSES, limit).fallen(["loss", "tpot"], list(LOSSES))[0].startswith("7 leaves the front: 3 is")


def test_figures_of_different_fidelity_never_meet_and_the_dearest_comes_first() -> None:
    short, long = fake_confirmations({3: [2.0, 2.1]}), fake_confirmations({3: [1.5, 1.4], 7: [1.6, 1.6]})
    long = [_trained_on(each, 8_000_000) for each in long]
    costs = {number: {"tpot": Measurement(1.0)} for number in LOSSES}
    found = confirmed_of([*short, *long], costs, ["loss", "tpot"], Limits())
    assert [each.fidelity.tokens for each in found] == [8_000_000, 2_000_000]
    assert [len(each.finalists) for each in found] == [2, 1]
    interrupted = [_trained_on(each, 8_000_000) for each in fake_confirmations({3: [1.5], 7: [1.6]})]
    found = confirmed_of([*fake_confirmations({3: [2.0, 2.1], 7: [2.2, 2.1]}), *interrupted], costs, ["loss"], Limits())
    assert [each.fidelity.tokens for each in found] == [2_000_000, 8_000_000]  # one seed each says nothing of the order


def _trained_on(evaluated: Candidate, tokens: int) -> Candidate:
    job = evaluated.proposal.job
    job = replace(job, fidelity=replace(job.fidelity, tokens=tokens))
    return replace(evaluated, proposal=replace(evaluated.proposal, job=job))


def test_failed_seeds_are_kept_and_in_no_mean() -> None:
    evaluations = fake_confirmations({3: [2.0, 2.1, 9.0]})
    evaluations[-1] = replace(evaluations[-1], state="failed", evaluation=None, error="loss became NaN")
    (found,) = confirmed_of(evaluations, {3: {"tpot": Measurement(1.0)}}, ["loss"], Limits())
    (finalist,) = found.finalists
    assert finalist.metrics["loss"].value == pytest.approx(2.05)
    assert [run.error for run in finalist.runs] == [None, None, "loss became NaN"]
    assert finalist.seeds == 2
    again = replace(fake_confirmations({3: [2.0, 2.1, 2.2]})[-1], number=99)
    (found,) = confirmed_of([again, *evaluations], {3: {"tpot": Measurement(1.0)}}, ["loss"], Limits())
    assert [run.trial for run in found.finalists[0].runs][-1] == 99
    assert found.finalists[0].seeds == 3


def test_a_metric_that_one_seed_lacks_has_no_mean() -> None:
    one, two = fake_confirmations({3: [2.1, 2.2]})
    assert one.evaluation is not None
    more = replace(one.evaluation, metrics={**one.metrics, "extra": Measurement(1.0)})
    (found,) = confirmed_of([replace(one, evaluation=more), two], {3: {"tpot": Measurement(1.0)}}, ["loss"], Limits())
    assert set(found.finalists[0].metrics) == {"loss", "tpot"}


def test_the_export_takes_the_confirmed_order() -> None:
    search = make_result()
    first, second, *_ = search.front
    result = make_result(confirmations=fake_confirmations({first: [2.6, 2.61], second: [2.0, 2.01]}))
    assert choose(search).number == first
    assert choose(result).number == second
    assert result.best_known == [second]
    fastest = min(result.front, key=lambda number: result.candidate(number).metrics["tpot"].value)
    limit = result.candidate(fastest).metrics["tpot"].value * 1e3 * 1.0001
    assert choose(result, max_latency_ms=limit).number == fastest  # of those that no seed was tried on
    assert passed_over(result, choose(result)) == []
    result = make_result(confirmations=fake_confirmations({second: [2.0, 2.01]}))
    assert choose(result).number == second
    assert passed_over(result, choose(result)) == [first]
    assert passed_over(search, choose(search)) == []


def test_finalists_are_trained_again_and_what_lacks_is_added(
    finished_run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = json.loads((tmp_path / "run" / "result.json").read_text())
    loss = HybridLM.loss
    with monkeypatch.context() as patched:  # a seed that fails is tried again below
        patched.setattr(HybridLM, "loss", lambda *given, **rest: loss(*given, **rest) * math.nan)
        command("confirm", "run", "--top", 1, "--seeds", 1, status=1)
    out, _ = command("confirm", "run", "--top", 2, "--seeds", 2)
    result = RunResult.load(tmp_path / "run" / "result.json")
    (found,) = result.confirmed
    chosen = sorted(each.number for each in found.finalists)
    assert len(chosen) == 2
    assert set(chosen) & set(result.front)
    assert [[run.seed for run in each.runs] for each in found.finalists] == [[1, 2], [1, 2]]
    assert f"By sized_loss: {found.order()}" in out
    assert "Confirmed front: " in out
    after = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {**after, "confirmed": []} == before  # the search itself is as it was
    for finalist in found.finalists:
        values = [run.metrics["loss"] for run in finalist.runs]
        assert len({*values, result.candidate(finalist.number).metrics["loss"].value}) == 3
        assert finalist.metrics["loss"].value == pytest.approx(statistics.fmean(values))
        assert finalist.metrics["tpot"] == result.candidate(finalist.number).metrics["tpot"]
    frame = pd.read_csv(tmp_path / "run" / "candidates.csv").set_index("number")
    assert list(frame.index[frame.seeds == 2]) == chosen
    finalist = found.finalist(chosen[0])
    assert finalist is not None
    assert frame.sized_loss_confirmed[chosen[0]] == pytest.approx(finalist.metrics["sized_loss"].value)
    assert set(frame.index[frame.confirmed_front]) == set(found.front)

    command("confirm", "run", "--top", 2, "--seeds", 2)  # nothing lacks
    assert load_store(tmp_path / "run" / "study.journal").count == 8 + 1 + 4
    command("confirm", "run", "--top", 3, "--seeds", 1)
    store = load_store(tmp_path / "run" / "study.journal")
    assert store.count == 8 + 1 + 5
    assert set(chosen) < {each.proposal.confirms for each in store.confirmations()}
    command("confirm", "run", "--top", 1, "--seeds", 2, "--tokens", 4096)
    result = RunResult.load(tmp_path / "run" / "result.json")
    assert [(each.fidelity.tokens, len(each.finalists)) for each in result.confirmed] == [(2048, 3), (4096, 1)]


def test_an_interrupted_confirmation_goes_on_and_ends_as_if_it_had_not_been(
    finished_run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    for name in ("run", "whole"):
        shutil.copytree(finished_run, tmp_path / name)
    train, calls = trainer.train_model, []

    def interrupting(*arguments: Any, **how: Any) -> Any:
        calls.append(how["seed"])
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return train(*arguments, **how)

    monkeypatch.setattr(trainer, "train_model", interrupting)
    _, err = command("confirm", "run", "--top", 2, "--seeds", 2, status=130)
    assert "to go on: nfsearch confirm run --top 2 --seeds 2" in err
    (half,) = RunResult.load(tmp_path / "run" / "result.json").confirmed
    assert sum(each.seeds for each in half.finalists) == 2
    command("confirm", "run", "--top", 2, "--seeds", 2)
    assert calls == [1, 1, 2, 2, 2]  # the third was cut short
    command("confirm", "whole", "--top", 2, "--seeds", 2)
    one, other = (
        json.loads((tmp_path / name / "result.json").read_text(), object_hook=_without_seconds)["confirmed"]
        for name in ("run", "whole")
    )
    assert one == other


def _without_seconds(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "seconds"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "nowhere is not the folder of a run"),
        (("run", "--seeds", 0), "Invalid value for '--seeds'"),
        (("run", "--tokens", 10**30), f"nfsearch: --tokens {10**30}: "),
    ],
)
def test_wrong_input_is_refused_and_nothing_written(
    arguments: tuple[Any, ...], message: str, finished_run: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    _, err = command("confirm", *arguments, status=2)
    assert message in err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_confirmation_may_be_shorter_than_the_rungs_of_the_search() -> None:
    result = make_result()
    proxy = {"kind": "training", "tokens": 4096, "rungs": [512, 1024]}
    config = result.config.model_copy(
        update={"resolved": {"space": {"width": 64, "layers": "F"}, "proxy": proxy, "workers": {}}}
    )
    found = confirm._config(result.model_copy(update={"config": config}), 1024)
    assert (found.proxy.tokens, found.proxy.rungs) == (1024, (512,))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"^--tokens -1: Input should be greater than 0$"):
        confirm._config(result.model_copy(update={"config": config}), -1)


def test_best_is_by_the_first_objective() -> None:
    found = {record.number: record.metrics for record in make_result(limits={}).in_state("done")}
    assert best(found, ["loss", "tpot"]) == make_result(fake_candidates(), limits={}).front


def test_that_all_of_a_later_confirmation_failed_is_no_success(
    finished_run: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    command("confirm", "run", "--top", 1, "--seeds", 1)

    def fail(*arguments: Any, **how: Any) -> Any:
        raise RuntimeError("a kernel broke")

    monkeypatch.setattr(trainer, "train_model", fail)
    _, err = command("confirm", "run", "--top", 2, "--seeds", 2, status=1)
    assert "all 3 trainings failed, the first with: RuntimeError: a kernel broke" in err
