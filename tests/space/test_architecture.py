import json
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings

from nfsearch.space import Architecture, Layer
from tests.space.strategies import layer_lists

FLASH_1B = Architecture.parse("(D F M2 F A F M2 F){2} (D F M2 F){2}", width=2048, vocab=131072, meta_tokens=256)
FLASH_3B = Architecture.parse("(D F M2 F A F M2 F){3} (D F M2 F){3}", width=3072, vocab=131072, meta_tokens=256)


def test_the_released_models_have_their_published_sizes() -> None:
    assert round(FLASH_1B.parameters / 1e6, 1) == 965.4
    assert round(FLASH_3B.parameters / 1e6, 1) == 2750.0


def test_a_head_of_its_own_is_counted_and_written() -> None:
    own = replace(FLASH_1B, tied_head=False)
    assert own.parameters - FLASH_1B.parameters == 131072 * 2048
    assert Architecture.from_dict(own.to_dict()) == own
    assert "tied_head" not in FLASH_1B.to_dict()  # what was written before reads and compares as before


@pytest.mark.parametrize("tied", [True, False])
def test_what_the_vocabulary_adds_is_no_part_of_what_computes(tied: bool) -> None:
    model = replace(FLASH_1B, tied_head=tied)
    assert model.non_embedding_parameters == replace(model, vocab=1).non_embedding_parameters
    assert model.parameters - model.non_embedding_parameters == 131072 * 2048 * (1 if tied else 2)


@given(layer_lists)
@settings(max_examples=50, deadline=None)
def test_json_and_yaml_both_ways(layers: tuple[Layer, ...]) -> None:
    architecture = Architecture(2048, layers, vocab=259, meta_tokens=4)
    fields = architecture.to_dict()
    assert (
        Architecture(**{**fields, "layers": Architecture.from_dict({**fields, "width": 128 * 16}).layers})
        == architecture
    )
    for loads, dumps in ((json.loads, json.dumps), (yaml.safe_load, yaml.safe_dump)):
        assert loads(dumps(fields)) == fields


def test_equal_models_share_a_digest_however_they_are_written() -> None:
    def digest(text: str, **rest: object) -> str:
        return Architecture.parse(text, width=2048, **rest).digest

    assert digest("A F") == digest("A[kv_heads=4,window=none] F[ratio=3.01]")
    assert digest("A F") != digest("A[kv_heads=2] F")
    assert digest("A F") != digest("F A")
    assert digest("A F") != digest("A F", meta_tokens=1)
    assert digest("A F") == "cbe7f5f660b11f73"  # must never change: studies and caches are keyed by it
    assert digest("M2") == digest("M2[heads=64]") == digest("M2[expand=2,groups=1]") == "62e2937087e74344"
    assert digest("M2[expand=1.5]") == digest("M2[heads=48]") == digest("M2[expand=1.5,heads=48]")
    assert digest("M2[groups=2,state=64]") != digest("M2")
    assert digest("A F", tied_head=True) == digest("A F") != digest("A F", tied_head=False)
    assert digest("A[qk_norm=true] GDN") == "44e77c2ff9854a5e"
    same = "A[qk_norm=true,heads=16,rope=1,gate=false] GDN[heads=6,key_heads=6]"
    assert digest("A[qk_norm=true] GDN") == digest(same)
    others = ("A[gate=true]", "A[rope=0]", "A[rope=0.5]", "A[heads=8]", "A[qk_norm=true]", "A[qk_norm=all]")
    assert len({digest("A"), *map(digest, others)}) == 7


def test_settings_that_do_not_fit_the_width_are_named() -> None:
    with pytest.raises(ValueError, match="A: width 100 is not a multiple of head_dim 128"):
        Architecture.parse("A F", width=100)
    with pytest.raises(ValueError, match="kv_heads 3 does not divide the 16 heads"):
        Architecture.parse("A[kv_heads=3]", width=2048)
    with pytest.raises(ValueError, match=r"M2\[groups=3\]: groups 3 does not divide the 64 heads of width 2048"):
        Architecture.parse("M2[groups=3]", width=2048)
    with pytest.raises(ValueError, match=r"M2\[expand=1.01\]: expand 1.01 of width 2048 is 2068.48, no whole number"):
        Architecture.parse("M2[expand=1.01]", width=2048)
    with pytest.raises(ValueError, match="expected heads or expand") as said:
        Architecture.parse("M2[heads=96,expand=1.5]", width=2048)
    assert str(said.value) == (
        "M2[expand=1.5,heads=96]: heads 96 of head_dim 64 are 6144 values, and expand 1.5 of width 2048 is 3072: "
        "expected heads or expand, or both of one size"
    )
    with pytest.raises(ValueError, match="key_heads 4 does not divide the 6 heads of width 2048"):
        Architecture.parse("GDN[key_heads=4]", width=2048)
    with pytest.raises(ValueError, match=r"F\[ratio=0.1\]: ratio 0.1 of width 128"):
        Architecture.parse("F[ratio=0.1]", width=128)


def test_layers_compare_by_what_they_are() -> None:
    assert Layer("deltanet") == Layer("D") == Layer.of("d", head_dim=128)
    assert Layer.of("A", window=512) != Layer("A")
    assert sorted([Layer("F"), Layer("A")]) == [Layer("A"), Layer("F")]
    with pytest.raises(ValueError, match="unknown operator 'mamba'"):
        Layer("mamba")
    with pytest.raises(ValueError, match="A has no setting 'windw', did you mean window"):
        Layer.of("A", windw=3)
    with pytest.raises(ValueError, match=r"A\[qk_norm=1\]: expected one of false, true, all"):
        Layer.of("A", qk_norm=1)
    with pytest.raises(ValueError, match="expected a whole number"):
        Layer.of("A", window=-1)
