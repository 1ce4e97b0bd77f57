"""Limits and objectives of a config: names of workloads, units, and what is said of wrong ones."""

from __future__ import annotations

from typing import Any

import pytest

from nfsearch.run.config import Config

WORKLOADS = {
    "tpot": {"context": 64},
    "tpot_8k": {"context": 8192},
    "decode_8k": {"phase": "generation", "tokens": 8192},
    "ttft_2k": {"phase": "prefill", "context": 2048},
    "serving": {"phase": "throughput", "context": 32768, "batches": [1, 16]},
}


def config(**sections: Any) -> Config:
    return Config.model_validate(
        {"space": {"width": 64, "layers": "F"}, "latency": {"workloads": WORKLOADS}, **sections}
    )


def test_the_unit_is_the_suffix() -> None:
    limits = {"decode_8k_s": 5.0, "ttft_2k_ms": 20, "memory_gb": 16, "tpot_us": 900, "serving_tokens_per_s": 4000}
    assert config(limits=limits).budgets == pytest.approx(
        {"decode_8k": 5.0, "ttft_2k": 0.02, "memory": 16e9, "tpot": 9e-4, "serving": 2.5e-4}
    )


def test_a_rate_limits_the_time_from_above() -> None:
    assert config(limits={"decode_8k_tokens_per_s": 1024}).budgets == {"decode_8k": 8.0}
    assert config(limits={"tpot_tokens_per_s": 1000, "memory_mb": 3}).budgets == {"tpot": 1e-3, "memory": 3e6}


def test_names_that_begin_alike_are_told_apart() -> None:
    assert config(limits={"tpot_8k_ms": 2, "tpot_ms": 1}).budgets == {"tpot_8k": 2e-3, "tpot": 1e-3}


def test_the_tighter_of_two_limits_counts() -> None:
    assert config(limits={"tpot_ms": 2, "tpot_s": 1e-3}).budgets == {"tpot": 1e-3}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"limits": {"tpto_ms": 1}},
            "'tpto_ms' is no NAME_UNIT of memory, tpot, .*latency.workloads defines workloads",
        ),
        ({"limits": {"tpot_gb": 1}}, "'tpot_gb' limits tpot, which is a time, in us, ms, s, tokens_per_s, not 'gb'"),
        ({"limits": {"memory_ms": 1}}, "'memory_ms' limits memory, which is memory, in mb, gb, not 'ms'"),
        ({"limits": {"tpot_8k_hours": 1}}, "limits tpot_8k, which is a time, in us, .* not 'hours'"),
        ({"limits": {"tpot_ms": 0}}, "limits.tpot_ms: expected a number above 0, found 0"),
        ({"objectives": ["loss", "speed"]}, "'speed' is none of loss, tpot, .*, memory; latency.workloads defines"),
        ({"objectives": ["memory", "loss"]}, "the first is loss"),
        (
            {"space": {"width": {"fit": "latency", "from": [64]}, "layers": "F"}, "limits": {"memory_gb": 1}},
            "tpot_ms: 2",
        ),
        ({"latency": {"workloads": {"memory": {}}}}, "'memory' is the name of something else"),
        ({"latency": {"workloads": {"x": {"phase": "generation", "context": 9}}}}, "generation takes batch, prompt"),
        ({"latency": {"accept": ["colour"]}}, "'colour' is none of device, device_name, driver"),
    ],
)
def test_what_is_wrong_is_said(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**sections)


def test_memory_can_be_an_objective() -> None:
    assert config(objectives=["loss", "tpot", "memory"]).objective_names == ("loss", "tpot", "memory")
    assert Config.model_validate(config().model_dump(mode="json")) == config()
