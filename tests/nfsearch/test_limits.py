"""Limits, objectives and kinds of a config: names, units, and what is said of wrong ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nfsearch.run.config import Config, validated
from tests.nfsearch.runs import complaint

WORKLOADS = {
    "tpot": {"context": 64},
    "tpot_8k": {"context": 8192},
    "decode_8k": {"phase": "generation", "tokens": 8192},
    "ttft_2k": {"phase": "prefill", "context": 2048},
    "serving": {"phase": "throughput", "context": 32768, "batches": [1, 16]},
}


def config(**sections: Any) -> Config:
    return validated({"space": {"width": 64, "layers": "F"}, "latency": {"workloads": WORKLOADS}, **sections})


def most(limits: dict[str, float]) -> Mapping[str, float]:
    return config(limits=limits).limit_values.most


def test_the_unit_is_the_suffix() -> None:
    limits = {"decode_8k_s": 5.0, "ttft_2k_ms": 20, "memory_gb": 16, "tpot_us": 900, "serving_tokens_per_s": 4000}
    assert most(limits) == pytest.approx(
        {"decode_8k": 5.0, "ttft_2k": 0.02, "memory": 16e9, "tpot": 9e-4, "serving": 2.5e-4}
    )


def test_a_rate_limits_the_time_from_above() -> None:
    assert most({"decode_8k_tokens_per_s": 1024}) == {"decode_8k": 8.0}
    assert most({"tpot_tokens_per_s": 1000, "memory_mb": 3}) == {"tpot": 1e-3, "memory": 3e6}


def test_names_that_begin_alike_are_told_apart() -> None:
    assert most({"tpot_8k_ms": 2, "tpot_ms": 1}) == {"tpot_8k": 2e-3, "tpot": 1e-3}
    assert most({"tpot_energy_mj": 4, "tpot_ms": 1}) == {"tpot_energy": 4e-3, "tpot": 1e-3}


def test_what_is_counted_or_has_no_unit_can_be_limited() -> None:
    limits = {"parameters_m": 1.5, "loss": 2.1, "bits_per_byte": 1.2, "perplexity": 9, "state_mb": 4}
    expected = {"parameters": 1.5e6, "loss": 2.1, "bits_per_byte": 1.2, "perplexity": 9, "state": 4e6}
    assert most(limits) == pytest.approx(expected)
    assert most({"parameters": 1000, "parameters_b": 1}) == {"parameters": 1000}


def test_the_tighter_of_two_limits_counts() -> None:
    assert most({"tpot_ms": 2, "tpot_s": 1e-3}) == {"tpot": 1e-3}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"limits": {"tpto_ms": 1}},
            "limits.tpto_ms: expected NAME_UNIT of sized_loss, .*tpot, .*memory, .*latency.workloads defines workloads",
        ),
        (
            {"limits": {"tpot_gb": 1}},
            "limits.tpot_gb: limits tpot, which is in seconds: expected tpot_us, tpot_ms, tpot_s, tpot_tokens_per_s",
        ),
        (
            {"limits": {"memory_ms": 1}},
            "limits.memory_ms: limits memory, which is in bytes: expected memory_mb, memory_gb",
        ),
        ({"limits": {"tpot_8k_hours": 1}}, "limits tpot_8k, which is in seconds: expected tpot_8k_us, .*tpot_8k_s"),
        (
            {"limits": {"memory": 1}},
            "limits.memory: limits memory, which is in bytes: expected memory_mb, memory_gb",
        ),
        (
            {"limits": {"loss_ms": 1}},
            "limits.loss_ms: limits loss, which is in nats per token: expected loss",
        ),
        ({"limits": {"params": 1}}, "limits.params: expected NAME_UNIT .*, did you mean parameters"),
        ({"limits": {"parameters_gb": 1}}, "which is a number: expected parameters, parameters_m, parameters_b"),
        ({"limits": {"bits_per_byte_mb": 1}}, "limits bits_per_byte, which is a number: expected bits_per_byte"),
        ({"limits": {"tpot_ms": 0}}, "limits.tpot_ms: expected a number above 0, found 0"),
        (
            {"limits": {"tpot_tokens_per_s": 1e-320}},
            "limits.tpot_tokens_per_s: expected a number above 0, found 9.99989e-321",
        ),
        (
            {"objectives": ["loss", "speed"]},
            "'speed' is none of sized_loss, loss, .*tpot, .*memory, .*; latency.workloads",
        ),
        ({"objectives": ["loss", "tpot", "loss"]}, "objectives.2: 'loss' is listed twice"),
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
    assert validated(config().model_dump(mode="json")) == config()


def test_any_metric_can_be_the_first_objective() -> None:
    for first in ("memory", "parameters", "state", "bits_per_byte", "ttft_2k", "tpot_energy"):
        assert config(objectives=[first, "loss"]).objective_names == (first, "loss")
    assert config().objective_names == ("sized_loss", *WORKLOADS)


KINDS = [
    ("search", "strategy", "agin", "unknown strategy 'agin', did you mean aging?; known: aging, random"),
    (
        "proxy",
        "kind",
        "trainign",
        "unknown proxy 'trainign', did you mean training?; known: compression, in_context_recall, "
        "long-context, mqar, selective_copying, training, zero-cost",
    ),
    ("rule", "kind", "medain", "unknown stopping rule 'medain', did you mean median?; known: median"),
    ("workers", "executor", "locl", "unknown executor 'locl', did you mean local?; known: local, ray"),
    ("search", "strategy", "zzz", "unknown strategy 'zzz'; known: aging, random"),
]


@pytest.mark.parametrize(("section", "key", "name", "message"), KINDS)
def test_an_unknown_kind_is_told_with_its_place_and_the_nearest_name(
    section: str, key: str, name: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError) as said:  # noqa: PT011  (the whole text is compared)
        config(**{section: {key: name}})
    assert str(said.value) == f"{section}.{key}: {message}"
    path = tmp_path / "config.yaml"
    space = "space: {width: 64, layers: F}\n"
    assert complaint(path, f"{space}{section}:\n  {key}: {name}\n") == f"{path}:3: {section}.{key}: {message}"
    assignment = f"{section}.{key}={name}"
    assert complaint(path, space, [assignment]) == f"--set {assignment}: {section}.{key}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {strategy: null}", "search.strategy: expected text, found None"),
        ("search: aging", "search: expected keys and values, found 'aging'"),
        ("rule: median", "rule: expected keys and values, found 'median'"),
        ("rule: {}", "rule.kind: is missing"),
        ("proxy: [training]", "proxy: expected keys and values"),
        ("workers: {executor: ''}", "workers.executor: unknown executor ''; known: local, ray"),
    ],
)
def test_a_section_that_names_no_kind_is_told_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert complaint(path, f"space: {{width: 64, layers: F}}\n{text}\n") == f"{path}:2: {message}"
