from __future__ import annotations

from typing import Any

import pytest

from nfsearch.latency_lut import Workload
from nfsearch.latency_lut.workload import Span


def test_grid_of_a_generation_has_its_ends_and_the_powers_of_two_between() -> None:
    assert Span("decode", 1, 100, 4000).grid == (100, 512, 1024, 2048, 4096, 4100)
    assert Span("decode", 1, 0, 8192).grid == (0, 512, 1024, 2048, 4096, 8192)
    assert Span("decode", 1, 700, 10).grid == (700, 710)
    assert Span("decode", 1, 700).grid == (700,)


def test_spans() -> None:
    assert Workload(phase="generation", batch=2, tokens=10).spans == (Span("decode", 2, 0, 10),)
    read, decode = Workload(phase="generation", prompt=5, tokens=10).spans
    assert read == Span("prefill", 1, 5)
    assert (decode.first, decode.last) == (5, 14)


def test_length_is_the_room_that_states_need() -> None:
    assert Workload(context=5).length == 6
    assert Workload(phase="prefill", context=5).length == 5
    assert Workload(phase="generation", prompt=5, tokens=10).length == 15


def test_throughput_chooses_among_decode_steps_the_largest_first() -> None:
    workload = Workload(phase="throughput", context=7, batches=(2, 8, 4))
    assert [(choice.phase, choice.batch, choice.context) for choice in workload.choices] == [
        ("decode", batch, 7) for batch in (8, 4, 2)
    ]


@pytest.mark.parametrize("fields", [{}, {"phase": "throughput", "batches": (2, 8)}])
def test_equal_workloads_stay_equal_once_their_choices_are_known(fields: dict[str, Any]) -> None:
    one, other = Workload(**fields), Workload(**fields)
    assert one.choices == other.choices
    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    ("workload", "value", "unit", "seconds"),
    [
        (Workload(), 2.0, "ms", 2e-3),
        (Workload(), 5.0, "s", 5.0),
        (Workload(), 30.0, "us", 30e-6),
        (Workload(batch=4), 1000.0, "tokens_per_s", 4e-3),
        (Workload(phase="prefill", batch=2, context=100), 1000.0, "tokens_per_s", 0.2),
        (Workload(phase="generation", tokens=500), 1000.0, "tokens_per_s", 0.5),
        (Workload(phase="throughput"), 1000.0, "tokens_per_s", 1e-3),
    ],
)
def test_limits_in_their_units(workload: Workload, value: float, unit: str, seconds: float) -> None:
    metric = workload.metric("tpot")
    assert unit in metric.limit_units
    assert metric.limit(value, unit) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"phase": "prefill", "context": 0}, "at least 1 token"),
        ({"phase": "generation", "context": 100}, "generation takes batch, prompt, tokens, not context"),
        ({"phase": "decode", "tokens": 5}, "decode takes batch, context, not tokens"),
        ({"phase": "throughput", "batch": 5}, "throughput takes batches, context, memory_gb, not batch"),
        ({"phase": "throughput", "batches": [1, 1]}, "a number is listed twice"),
        ({"phase": "training"}, "'decode', 'prefill', 'generation' or 'throughput'"),
    ],
)
def test_what_does_not_fit_together(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Workload(**fields)  # type: ignore[arg-type]


def test_defaults_written_out_are_fine() -> None:
    for phase in ("decode", "prefill", "generation", "throughput"):
        workload = Workload(phase=phase)
        assert Workload.model_validate(workload.model_dump(mode="json")) == workload
