"""Members of transformers' nemotron_h: exported, opened by its own class; and what it cannot express."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from nfsearch.export.nemotron_h import EPS, NemotronHExporter
from nfsearch.ops.mamba2 import Mamba2
from nfsearch.ops.model import HybridLM
from nfsearch.ops.operator import build_operator
from nfsearch.space import Architecture, Layer, SpaceSettings
from tests.nfsearch.families import check_members, refusal

EXPORTER = NemotronHExporter()
A, M2, F = "A[head_dim=16,rope=0]", "M2[head_dim=16]", "F[act=relu2]"


def member(rng: random.Random) -> Architecture:
    heads = rng.choice((2, 4, 6))
    mamba = Layer.of(
        "M2", heads=heads, head_dim=rng.choice((8, 16)), groups=rng.choice([n for n in (1, 2, 3, 4) if heads % n == 0]),
        state=rng.choice((8, 12)), conv=rng.choice((2, 3, 4)),
    )  # fmt: skip
    heads = rng.choice((2, 3, 4))
    attention = Layer.of(
        "A", heads=heads, kv_heads=rng.choice([n for n in (1, 2) if heads % n == 0]), head_dim=rng.choice((8, 16)),
        rope=0.05 if heads == 3 else 0,  # of a pair, which is none
    )  # fmt: skip
    ffn = Layer.of("F", ratio=rng.choice((1.0, 2.5)), act="relu2")
    layers = [attention, *rng.choices((mamba, mamba, attention, ffn), k=rng.randint(1, 5))]
    rng.shuffle(layers)
    return Architecture(
        rng.choice((32, 48)), tuple(layers), vocab=rng.choice((97, 128)), head_norm=rng.random() < 0.5,
        norm_eps=rng.choice((1e-6, 1e-5)), tied_head=rng.random() < 0.5,
    )  # fmt: skip


@pytest.mark.slow
def test_random_members_are_the_same_models_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    check_members(EXPORTER, member, tmp_path, scale=0.6)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (f"{A} D[head_dim=16]", "layer 1 is D[head_dim=16]: nemotron_h has layers for M2, A, F alone"),
        (f"GDN[head_dim=16] {A}", "layer 0 is GDN[head_dim=16]: nemotron_h has"),
        (f"{A} GLA", "layer 1 is GLA: nemotron_h has"),
        (f"{A} C", "layer 1 is C: nemotron_h has"),
        (f"{M2} A[head_dim=16]", "layer 1 is A[head_dim=16], with rope=1: nemotron_h needs rope=0"),
        ("A[head_dim=16,rope=0.5]", "with rope=0.5: nemotron_h needs rope=0"),
        ("A[head_dim=16,rope=0.1]", "rope=0.1], with rope=0.125: nemotron_h needs rope=0"),
        ("A[head_dim=16,rope=0,window=8]", "with window=8: nemotron_h needs window=none"),
        ("A[head_dim=16,rope=0,qk_norm=true]", "with qk_norm=true: nemotron_h needs qk_norm=false"),
        ("A[head_dim=16,rope=0,qk_norm=all]", "with qk_norm=all: nemotron_h needs qk_norm=false"),
        ("A[gate=true,head_dim=16,rope=0]", "with gate=true: nemotron_h needs gate=false"),
        (f"{A} F", "layer 1 is F, with act=swiglu: nemotron_h needs act=relu2"),
        (f"{A} M2[conv=1,head_dim=16]", "with conv=1: nemotron_h needs conv=2 or conv=3 or conv=4"),
        (f"{A} {M2} M2[conv=2,head_dim=16]", "with conv=2, and layer 1 is M2[head_dim=16], with 4: nemotron_h has one"),
        (f"{A} {M2} M2[head_dim=16,state=64]", "with state=64, and layer 1 is M2[head_dim=16], with 128"),
        (f"{A} {M2} M2[groups=2,head_dim=16]", "with groups=2, and layer 1 is M2[head_dim=16], with 1: nemotron_h has"),
        (f"{A} {M2} M2[head_dim=32]", "nemotron_h has one mamba_"),
        (
            f"{A} {M2} M2[expand=1,head_dim=16]",
            "layer 2 is M2[expand=1,head_dim=16], with heads=4, and layer 1 is M2[head_dim=16], with 8: "
            "nemotron_h has one mamba_num_heads for all layers",
        ),
        (f"{A} A[head_dim=16,heads=8,rope=0]", "nemotron_h has one num_attention_heads for all layers"),
        (f"{A} A[head_dim=16,kv_heads=2,rope=0]", "with kv_heads=2, and layer 0 is"),
        (f"{A} {F} F[act=relu2,ratio=2]", "with inner=128 (by ratio), and layer 1 is F[act=relu2], with 192"),
        (f"{M2} {F}", "no layer is A: nemotron_h counts the tokens in its cache by those of attention layers"),
    ],
)
def test_what_it_cannot_express_is_refused_by_name(layers: str, said: str) -> None:
    assert said in refusal(EXPORTER, layers)


def test_a_share_of_which_no_value_turns_is_none() -> None:
    assert refusal(EXPORTER, f"A[head_dim=16,rope=0.05] {M2} {A}") == ""


def test_meta_tokens_are_refused_and_heads_of_all_kinds_are_not() -> None:
    assert refusal(EXPORTER, A, meta_tokens=4) == "meta_tokens is 4: nemotron_h has none"
    assert refusal(EXPORTER, A, head_norm=True, tied_head=False, norm_eps=1e-4) == ""


def test_the_folder_says_what_its_class_does_differently(tmp_path: Path) -> None:
    model = HybridLM(Architecture.parse(f"{A} {M2} {F}", width=64, vocab=97))
    folder = EXPORTER.write(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert (config["hybrid_override_pattern"], config["layer_norm_epsilon"]) == ("*M-", 1e-5)
    assert config["tie_word_embeddings"] is False
    card = (folder / "README.md").read_text()
    assert "padded on the left" in card
    assert "holds the embedding again: 6,208 weights more" in card
    assert "trust_remote_code" not in card


def test_the_norm_of_mamba2_has_the_epsilon_of_the_rule() -> None:
    mamba = build_operator(Layer.of("M2", head_dim=16), 32)
    assert isinstance(mamba, Mamba2)
    assert mamba.norm.eps == EPS


def test_all_that_an_open_space_draws_can_be_exported() -> None:
    mixers = "D | M2[groups=1|4,state=64|128] | A[rope=0|1,window=none|512,heads=4|8]"
    space = SpaceSettings(
        width=[512, 1024], where={"mixer": mixers, "wide": "F[ratio=2|3,act=relu2|swiglu]"},
        layers="(mixer wide{0..2})*{1..12}", serves="nemotron_h", head_norm=True,
    ).build(32000)  # fmt: skip
    rng = random.Random(0)
    drawn = {space.sample(rng).architecture for _ in range(1000)}
    assert len(drawn) > 900
    assert {EXPORTER.refusal(architecture) for architecture in drawn} == {""}
