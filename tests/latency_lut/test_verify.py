from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path

import pytest
import torch

from nfsearch.latency_lut import LatencyTable, TableError, Workload, device, keys_for, profiler, verify
from nfsearch.latency_lut.agreement import Doubt, Trust, doubt_of
from nfsearch.latency_lut.timing import CPU, Bounds
from nfsearch.latency_lut.verification import Check, Verification
from nfsearch.latency_lut.workload import Span
from nfsearch.space.notation import parse

from .helpers import made_up_check, made_up_row, made_up_table, made_up_verification, measure_quickly, small_space

SPACE = small_space((32,), meta_tokens=(0, 4))
WORKLOADS = {"tpot": Workload(context=12), "ttft": Workload(phase="prefill", context=8)}
KEYS = keys_for(SPACE, WORKLOADS, "float32")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    measure_quickly(monkeypatch)
    table = made_up_table(KEYS)
    table.provenance = device.provenance("cpu")
    return table


def test_measures_each_architecture_under_each_workload(table: LatencyTable) -> None:
    seen: list[tuple[int, int, int]] = []
    result = verify.verify(
        table,
        SPACE,
        WORKLOADS,
        dtype="float32",
        n=3,
        progress=lambda done, total, found: seen.append((done, total, len(found.checks))),
    )
    assert seen == [(1, 3, 2), (2, 3, 4), (3, 3, 6)]
    assert set(result.agreement) == {"tpot", "ttft"}
    assert [check.workload for check in result.checks] == ["tpot", "ttft"] * 3
    assert len({check.digest for check in result.checks}) == 3
    assert all(check.measured_ms > 0 for check in result.checks)
    again = verify.verify(table, SPACE, WORKLOADS, dtype="float32", n=3)
    assert [check.architecture for check in again.checks] == [check.architecture for check in result.checks]
    other = verify.verify(table, SPACE, WORKLOADS, dtype="float32", n=3, seed=1)
    assert [check.architecture for check in other.checks] != [check.architecture for check in result.checks]


def test_what_is_known_is_not_measured_again(table: LatencyTable) -> None:
    first = verify.verify(table, SPACE, WORKLOADS, dtype="float32", n=2)
    known = [first.checks[0].model_copy(update={"measured_ms": 7.0}), *first.checks[1:3]]  # the second model's half
    again = verify.verify(table, SPACE, WORKLOADS, dtype="float32", n=2, known=known)
    assert [check.digest for check in again.checks] == [check.digest for check in first.checks]
    assert again.checks[0].measured_ms == 7.0
    assert again.checks[1:3] == first.checks[1:3]
    assert again.checks[3] != first.checks[3]


def test_checks_of_other_models_are_added_to_and_those_of_other_workloads_dropped() -> None:
    one, other = made_up_check(1, 2, digest="a"), made_up_check(1, 3, digest="b")
    renewed = made_up_check(1, 4, digest="b")
    prompt = made_up_check(1, 2, digest="a", workload="ttft")
    both = made_up_verification(renewed).joined(made_up_verification(one, other, prompt))
    assert both.checks == (one, prompt, renewed)
    assert both.agreement["tpot"].models == 2
    changed = made_up_verification(renewed).model_copy(update={"workloads": {"tpot": Workload(context=5)}})
    assert changed.joined(made_up_verification(one, prompt)).checks == (prompt, renewed)
    assert changed.checks_of({"tpot": Workload()}, "float32") == []
    assert changed.checks_of({"tpot": Workload(context=5)}, "float32") == [renewed]
    assert changed.checks_of({"tpot": Workload(context=5)}, "bfloat16") == []
    brain = changed.model_copy(update={"dtype": "bfloat16"})
    assert brain.joined(made_up_verification(one)) == brain


def test_estimate_and_measurement_are_of_the_same_thing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor of two apart would mean that different things are run."""
    measure_quickly(monkeypatch, least=CPU.least, most=CPU.most, seconds=0.07)
    space = small_space((64,))
    workloads = {"tpot": Workload(context=12)}
    keys = profiler.rows_of(space, workloads, "float32", "cpu")
    table = profiler.build(keys, tmp_path / "t.parquet", device="cpu")
    checks = verify.verify(table, space, workloads, dtype="float32", n=4).checks
    assert any(0.5 < check.estimated_ms / check.measured_ms < 2 for check in checks)  # a busy machine spoils some


def test_agreement() -> None:
    checks = (made_up_check(1.1, 1.0), made_up_check(1.8, 2.0), made_up_check(3.0, 3.0), made_up_check(8.0, 4.0))
    agreement = made_up_verification(*checks).agreement["tpot"]
    assert agreement.models == 4
    assert agreement.mape == pytest.approx((0.1 + 0.1 + 0 + 1.0) / 4)
    assert agreement.bias == pytest.approx((0.1 - 0.1 + 0 + 1.0) / 4)
    assert agreement.worst == pytest.approx(1.0)
    assert (agreement.spearman, agreement.kendall) == (pytest.approx(1.0), pytest.approx(1.0))
    reverse = made_up_verification(made_up_check(1, 3), made_up_check(2, 2), made_up_check(3, 1)).agreement["tpot"]
    assert (reverse.spearman, reverse.kendall) == (pytest.approx(-1.0), pytest.approx(-1.0))
    assert reverse.worst == pytest.approx(2.0)


def test_a_bad_check_says_what_is_bad_about_it() -> None:
    good = [made_up_check(1.05, 1), made_up_check(2.1, 2), made_up_check(3.1, 3)]
    assert made_up_verification(*good).complaints(Trust()) == []
    (off,) = made_up_verification(*(made_up_check(1.4 * ms, ms) for ms in (1, 2, 3))).complaints(Trust())
    assert off == "tpot: estimates are 40.0% off on average, more than 10%"
    (order,) = made_up_verification(*(made_up_check(ms, 1 / 100 + 1 - ms / 100) for ms in (1, 1.01, 1.02))).complaints(
        Trust(mape=0.5)
    )
    assert order == "tpot: estimates do not put models in their order (Spearman's rho -1.00, less than 0.9)"
    assert made_up_verification(*(made_up_check(1.4 * ms, ms) for ms in (1, 2, 3))).complaints(Trust(mape=0.5)) == []


def test_an_error_bar_holds_noise_bias_and_what_is_left() -> None:
    pure_bias = made_up_verification(made_up_check(1, 2), made_up_check(2, 4)).doubt("tpot")
    assert pure_bias == Doubt(1.0, 0.0)
    assert pure_bias.bar(3.0, 0.1) == pytest.approx(3.1)  # what was measured is 6
    spread = made_up_verification(made_up_check(1, 1.1), made_up_check(1, 0.9), made_up_check(1, 9, workload="ttft"))
    assert spread.doubt("tpot").bias == pytest.approx(0.0)
    assert spread.doubt("tpot").residual == pytest.approx(0.1 * 2**0.5)
    assert spread.doubt("tpot").bar(1.0, 0.3) == pytest.approx((0.3**2 + 0.08) ** 0.5)
    assert spread.doubt("other") == doubt_of([(1, 1.1), (1, 0.9), (1, 9)])
    assert spread.doubt("ttft") == Doubt(8.0, 8.0)  # of a lone check


@pytest.mark.parametrize(
    "checks",
    [(made_up_check(1, 2), made_up_check(2, 3)), (made_up_check(1, 2), made_up_check(1, 3), made_up_check(1, 4))],
)
def test_no_rank_where_nothing_can_be_ranked(checks: tuple[Check, ...]) -> None:
    agreement = made_up_verification(*checks).agreement["tpot"]
    assert (agreement.spearman, agreement.kendall) == (None, None)


def test_json_both_ways() -> None:
    result = made_up_verification(made_up_check(1, 2), made_up_check(2, 3, workload="ttft"))
    text = result.model_dump_json()
    assert Verification.model_validate_json(text) == result
    assert json.loads(text)["agreement"]["ttft"]["models"] == 1


def test_the_fastest_look_counts_and_its_bar_reaches_the_next() -> None:
    quiet, next_to_it, disturbed = (made_up_check(1.0, each) for each in (1.0, 1.2, 5.0))
    for looks in itertools.permutations((quiet, next_to_it, disturbed)):
        found = verify._fastest(looks)
        assert found is not None
        assert found.measured_ms == quiet.measured_ms
        assert found.spread_ms / 2 == pytest.approx(0.2 * quiet.measured_ms)
    assert verify._fastest([quiet]) == quiet
    assert verify._fastest([quiet, None]) is None


@pytest.mark.parametrize(
    ("seconds", "looks", "said"),
    [
        ((1.0, 1.1), 2, 1.0),
        ((1.0, 35.0, 1.01), 3, 1.0),  # the second look was disturbed
        ((32.0, 31.0, 30.0, 1.0), 4, 1.0),  # all but the last were
        ((32.0, 31.0, 30.0, 33.0), 4, 30.0),
    ],
)
def test_what_seems_disturbed_is_timed_again(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], looks: int, said: float
) -> None:
    model = SPACE.sample(random.Random(1)).architecture
    estimate = table.estimate(model, WORKLOADS["tpot"], "float32").seconds
    left = [each * estimate for each in seconds]
    monkeypatch.setattr(verify, "_time", lambda *given: (left.pop(0), 0.0, None))
    *_, (_, found) = verify.time_whole(table, [(model, {"tpot": WORKLOADS["tpot"]})], 2, dtype="float32", kind="cpu")
    assert found["tpot"] is not None
    assert found["tpot"].measured_ms == pytest.approx(said * 1e3 * estimate)
    assert len(left) == len(seconds) - looks


def test_in_several_rounds_all_are_timed_before_any_is_timed_again(table: LatencyTable) -> None:
    first, second = (SPACE.sample(random.Random(seed)).architecture for seed in (1, 2))
    each = [(first, WORKLOADS), (second, {"tpot": WORKLOADS["tpot"]})]
    found = list(verify.time_whole(table, each, 2, dtype="float32", kind="cpu"))
    assert [digest for digest, _ in found] == [first.digest, second.digest] * 2
    assert [sorted(checks) for _, checks in found] == [[], [], ["tpot", "ttft"], ["tpot"]]


def test_a_round_gives_a_model_the_time_of_a_look_at_a_row(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def time(model: object, span: Span, kind: str, within: Bounds) -> tuple[float, float, None]:
        given.append(within.seconds)
        return 1.0, 0.1, None

    monkeypatch.setattr(verify, "_time", time)
    model = (SPACE.sample(random.Random(1)).architecture, {"tpot": WORKLOADS["tpot"]})
    list(verify.time_whole(table, [model], 2, dtype="float32", kind="cpu"))
    assert set(given) == {verify.bounds("cpu").seconds}


def test_what_did_not_fit_is_passed_over(table: LatencyTable) -> None:
    for key in KEYS:
        if key.block.startswith("A"):
            table.add(made_up_row(key, None))
    result = verify.verify(table, SPACE, {"tpot": WORKLOADS["tpot"]}, dtype="float32", n=3)
    assert len(result.checks) == 3
    assert not any("A" in check.architecture for check in result.checks)


def test_small_space_gives_fewer() -> None:
    table = made_up_table(KEYS)
    space = dataclasses.replace(SPACE, layers=parse("D[head_dim=16]{1..2}", {}))
    assert len(verify._held_out(table, space, WORKLOADS, "float32", 10, 0, None)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [({"torch": "1.0"}, "made with torch 1.0, now"), ({"device": "nvidia-b9000"}, "is not here")],
)
def test_table_of_something_else_is_refused(table: LatencyTable, change: dict[str, str], message: str) -> None:
    table.provenance = dataclasses.replace(table.provenance, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        verify.verify(table, SPACE, WORKLOADS, dtype="float32", n=1)


def test_incomplete_table_is_refused(table: LatencyTable) -> None:
    table.rows.clear()
    with pytest.raises(TableError, match="has no row for"):
        verify.verify(table, SPACE, WORKLOADS, dtype="float32", n=1)


def test_accepted_differences_are_verified_all_the_same(table: LatencyTable) -> None:
    table.provenance = dataclasses.replace(table.provenance, torch="1.0")
    for key in KEYS[:3]:
        table.add(made_up_row(key, code="0" * 12))
    with pytest.raises(TableError, match=f"3 of {len(KEYS)} rows were timed with other code"):
        verify.verify(table, SPACE, WORKLOADS, dtype="float32", n=1, accept=["torch"])
    assert verify.verify(table, SPACE, WORKLOADS, dtype="float32", n=1, accept=["torch", "kernels"]).checks


def test_generations_and_throughput_are_measured(table: LatencyTable, monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"decode": 1.0, "prefill": 100.0}
    asked: list[Span] = []

    def time(model: object, span: Span, kind: str, within: Bounds) -> tuple[float, float, None]:
        asked.append(span)
        return times[span.phase] + span.first / 1e3, 0.1, None

    monkeypatch.setattr(verify, "_time", time)
    generation = Workload(phase="generation", prompt=8, tokens=800)
    serving = Workload(phase="throughput", context=12, batches=(1, 4), memory_gb=1)
    workloads = {"it": generation, "serving": serving}
    table.rows.clear()
    for key in keys_for(SPACE, workloads, "float32"):
        table.add(made_up_row(key))
    made, served = verify.verify(table, SPACE, workloads, dtype="float32", n=1).checks
    contexts = [span.first for span in asked if span.phase == "decode" and span.batch == 1]
    assert [*dict.fromkeys(contexts)] == [8 + 50 + 100 * share for share in range(8)]
    assert made.measured_ms == pytest.approx(
        1e3 * (100.008 + sum(1 + (8 + step) / 1e3 for step in range(800))), rel=1e-3
    )
    assert served.measured_ms == pytest.approx(1e3 * 1.012 / 4)


def test_by_depth() -> None:
    checks = tuple(made_up_check(1.1, 1.0, depth=depth) for depth in (6, 30, 7, 8, 9, 12, 13, 20, 21))
    groups = made_up_verification(*checks).by_depth["tpot"]
    assert {label: group.models for label, group in groups.items()} == {
        "6 to 9 operators": 4,
        "12 to 20 operators": 3,
        "21 to 30 operators": 2,
    }
    alike = made_up_verification(made_up_check(1, 1), made_up_check(1, 1)).by_depth["tpot"]
    assert list(alike) == ["1 operators"]


def test_memory_agreement_counts_what_was_measured() -> None:
    checks = (made_up_check(1, 1), made_up_check(1, 1, measured_gb=1.25))
    memory = made_up_verification(*checks).memory["tpot"]
    assert (memory.models, memory.mape, memory.bias) == (1, pytest.approx(0.2), pytest.approx(-0.2))
    assert made_up_verification(*checks[:1]).memory == {}


def test_a_model_that_does_not_fit_is_told_and_passed_over(
    table: LatencyTable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def time(model: object, span: Span, kind: str, within: Bounds) -> tuple[float, float, None]:
        if span.phase == "prefill":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0, 0.1, None

    monkeypatch.setattr(verify, "_time", time)
    checks = verify.verify(table, SPACE, WORKLOADS, dtype="float32", n=2).checks
    assert [check.workload for check in checks] == ["tpot", "tpot"]
    assert "was estimated to fit into memory under ttft, and did not" in caplog.text

    def builds(*_: object) -> object:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(verify, "build_model", builds)
    assert not verify.verify(table, SPACE, WORKLOADS, dtype="float32", n=2).checks
    assert "@ 32 was estimated to fit into memory, and did not" in caplog.text
