"""Values of a config that cannot be read or are wrong: each complaint has its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.nfsearch.runs import complaint

SPACE = "space: {width: 64, layers: F}\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("!!timestamp x", "'x' is no date"),
        ("!!bool maybe", "'maybe' is no true or false"),
        ("!!int ''", "'' is no whole number that can be read"),
        ("!!map [1]", "what is in brackets is no map"),
        ("!number [1]", "what is in brackets is no number"),
        ("2020-99-99", "'2020-99-99' is no date"),
        ("0x_", "'0x_' is no whole number that can be read"),
        ("9" * 5000, f"'{'9' * 40}' is no whole number that can be read"),
        ('"\\ud800"', "'\\ud800' is no text of Unicode"),
    ],
)
def test_a_value_that_cannot_be_read(tmp_path: Path, value: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    assert complaint(path, f"{SPACE}proxy:\n  tokens: {value}\n") == f"{path}:3: not valid YAML: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "limits:\n  loss: 3\n  tpot_gb: 3\n",
            "4: limits.tpot_gb: limits tpot, which is in seconds: expected tpot_us, tpot_ms, ",
        ),
        ("limits:\n  loss: 3\n  tpt_ms: 3\n", "4: limits.tpt_ms: expected NAME_UNIT of sized_loss, loss, "),
        ("limits:\n  loss: 0\n", "3: limits.loss: expected a number above 0, found 0"),
        ("objectives:\n- loss\n- speed\n", "4: objectives.1: 'speed' is none of sized_loss, loss, "),
        ("objectives:\n- loss\n- loss\n", "4: objectives.1: 'loss' is listed twice"),
        ("latency:\n  workloads:\n    memory: {}\n", "4: latency.workloads.memory: 'memory' is the name of something"),
    ],
)
def test_a_limit_or_objective_that_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    assert complaint(path, SPACE + text).startswith(f"{path}:{message}")


def test_a_notation_that_needs_quotes(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert complaint(path, "space: {width: 64, layers: A[head_dim=16]}\n") == (
        f"{path}:1: not valid YAML: expected ',' or '}}', but got '[': text with brackets goes in quotes"
    )


def test_a_width_that_needs_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    assert complaint(path, "space:\n  layers: F\n  width: {fit: latency, from: [64]}\n") == (
        f"{path}:3: space.width: {{fit: latency}} needs a latency in limits, such as tpot_ms: 2"
    )


def test_a_file_that_no_config_is(tmp_path: Path) -> None:
    assert "more than 256,000 bytes, which no config has" in complaint(tmp_path / "config.yaml", "a: b\n" * 100_000)
