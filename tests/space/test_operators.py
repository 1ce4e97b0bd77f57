"""Operators by name."""

import re
from dataclasses import replace

import pytest

from nfsearch.space import OperatorSpec, find_operator, operators
from nfsearch.space.layer import Layer, print_value
from nfsearch.space.operators import operator_names, registry
from nfsearch.space.operators.deltanet import SPEC
from nfsearch.support.registry import Registry
from tests.readme import README


def test_mixers_come_before_the_ffn() -> None:
    assert [name for name, spec in operators().items() if spec.module.startswith("nfsearch.")] == [
        "A", "C", "D", "GDN", "GLA", "M2", "F",
    ]  # fmt: skip


def test_the_readme_lists_every_setting_with_its_default() -> None:
    rows = [line.split("|") for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    for name, spec in operators().items():
        if spec.module.startswith("nfsearch."):
            settings = {f"{key}={print_value(setting.default)}" for key, setting in spec.settings.items()}
            assert settings in [set(re.findall(r"`(\w+=\w[\w.]*)`", row[2])) for row in rows if row[1] == f" `{name}` "]


def test_any_name_in_any_case() -> None:
    assert find_operator("D") is find_operator("d") is find_operator("DeltaNet") is SPEC
    assert find_operator("fla:HGRN2Attention").name == "fla:HGRN2Attention"
    assert find_operator("FLA:HGRN2Attention") is find_operator("delta") is None
    assert {"D", "deltanet"} <= set(operator_names())


@pytest.mark.parametrize(
    ("entry", "spec", "message"),
    [
        ("X", SPEC, "the entry point X holds the operator D"),
        ("X", replace(SPEC, name="X"), "operators D and X are both called deltanet"),
        ("d", replace(SPEC, name="d", long_name="mine"), "operators D and d are both called d:"),
    ],
)
def test_names_that_clash_are_refused(
    entry: str, spec: OperatorSpec, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Registry, "all", lambda self: {"D": SPEC, entry: spec})
    with pytest.raises(ValueError, match=message):
        registry.operators.__wrapped__()


@pytest.mark.parametrize(("ratio", "width", "inner"), [(4.6, 3200, 14720), (1.4, 720, 1008), (3.0, 1024, 3072)])
def test_an_ffn_loses_no_step_to_floating_point(ratio: float, width: int, inner: int) -> None:
    assert Layer.of("F", ratio=ratio).shape(width)["inner"] == inner
