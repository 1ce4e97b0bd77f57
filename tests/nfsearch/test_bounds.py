"""Numbers of a config that no machine has: infinite, not a number, or beyond measure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from nfsearch.run.config import Config, load_config, model_for
from nfsearch.run.records import run_meta
from nfsearch.support.settings import Settings
from tests.nfsearch.runs import complaint


def sections(model: type[Settings]) -> Iterator[type[Settings]]:
    yield model
    for field in model.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from sections(field.annotation)


def test_every_section_has_the_guard() -> None:
    model: type[Config] = model_for({"rule": {"kind": "median"}, "workers": {"executor": "ray"}})
    found = {section.__name__ for section in sections(model)}
    assert found >= {"SpaceSettings", "Limits", "LatencySettings", "TrainingSettings", "AgingSettings", "RaySettings"}
    assert all(section.model_config["allow_inf_nan"] is False for section in sections(model))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("limits: {tpot_ms: .inf}", "limits.tpot_ms: expected a finite number, found inf"),
        ("limits: {loss: .nan}", "limits.loss: expected a finite number, found nan"),
        ("limits: {memory_gb: 1e300}", "limits: expected a number up to 9.22e+18, found a larger one"),
        ("proxy: {learning_rate: .inf}", "proxy.learning_rate: expected a finite number, found inf"),
        ("workers: {gpus: .inf}", "workers.gpus: expected a finite number, found inf"),
        ("rule: {kind: median, share: .nan}", "rule.share: expected a finite number, found nan"),
        ("search: {seed: 18446744073709551616}", "search.seed: expected a number up to 9.22e+18, found a larger one"),
        ("search: {seed: 1e30}", "search.seed: expected a number up to 9.22e+18, found a larger one"),
        ("search: {evaluations: 1e10}", "search.evaluations: expected less than or equal to 1000000"),
        ("search: {population: 1e10}", "search.population: expected less than or equal to 1000000"),
        ("latency: {workloads: {tpot: {batch: 1e12}}}", "latency.workloads.tpot.batch: expected less than or equal to"),
        (
            "latency: {workloads: {tpot: {context: 1e12}}}",
            "latency.workloads.tpot.context: expected less than or equal",
        ),
    ],
)
def test_a_number_beyond_measure_is_refused_with_its_place(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"space: {{width: 64, layers: F}}\n{line}\n")
    with pytest.raises(ValueError) as said:  # noqa: PT011  (the text is compared)
        load_config(path)
    assert str(said.value).startswith(f"{path}:2: {message}")


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ("{width: 1000000000, layers: F}", "space.width: expected whole numbers from 1 to 1,048,576"),
        ("{width: 1000000000000, layers: 'A[head_dim=128]'}", "space.width: expected whole numbers from 1 to"),
        ("{width: {fit: latency, from: [64, 1e12]}, layers: F}", "space.width: expected whole numbers from 1 to"),
        ("{width: 64, vocab: 1e12, layers: F}", "space.vocab: expected less than or equal to 1048576"),
        ("{width: 64, meta_tokens: [0, 1e12], layers: F}", "space.meta_tokens: expected whole numbers from 0 to"),
        ("{width: 64, layers: 'F[ratio=1e400]'}", "space.layers: column 9: F[ratio]: expected a number from 0.001 to"),
        ("{width: 64, layers: 'F[ratio=1e300]'}", "space.layers: column 9: F[ratio]: expected a number from 0.001 to"),
        ("{width: 64, layers: 'GLA[expand_k=1e400]'}", "space.layers: column 14: GLA[expand_k]: expected a number"),
    ],
)
def test_a_size_beyond_measure_is_refused_with_its_place(tmp_path: Path, space: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    assert complaint(path, f"space: {space}\nlimits: {{tpot_ms: 1}}\n").startswith(f"{path}:1: {message}")


def test_a_space_too_large_for_a_number_of_json_is_not_counted(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("space: {width: 128, layers: '(D[head_dim=64|128] | F[ratio=2|3|4])*{1500}'}\n")
    config, file = load_config(path)
    meta = run_meta(config, file, config.space.build(257), "cpu")
    assert meta["space"]["count"] is None
