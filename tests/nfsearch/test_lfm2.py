"""Members of transformers' lfm2: exported, opened by its own class; and what it cannot express."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest

from nfsearch.export.lfm2 import EPS, Lfm2Exporter
from nfsearch.ops.attention import Attention
from nfsearch.ops.model import HybridLM
from nfsearch.ops.operator import build_operator
from nfsearch.space import Architecture, Layer
from tests.nfsearch.families import check_members, refusal

ATTENTION = "A[head_dim=16,qk_norm=true]"


def member(rng: random.Random) -> Architecture:
    heads, kv_heads = rng.choice(((1, 1), (2, 1), (2, 2), (4, 1), (4, 2)))
    attention = Layer.of(
        "A", head_dim=32 // heads, heads=rng.choice((None, heads)), kv_heads=kv_heads, qk_norm=True,
        rope_base=rng.choice((10000.0, 1e6)), rope=0.97 if heads > 1 else 1,  # rounded to whole pairs
    )  # fmt: skip
    conv, ffn = Layer.of("C", conv=rng.choice((3, 2, 4))), Layer.of("F", ratio=rng.choice((1.0, 2.5)))
    mixers = [attention, *rng.choices((conv, attention), weights=(3, 1), k=rng.randint(1, 3))]
    rng.shuffle(mixers)
    layers = tuple(layer for mixer in mixers for layer in (mixer, ffn))
    return Architecture(32, layers, vocab=rng.choice((97, 128)), tied_head=rng.random() < 0.5)


@pytest.mark.slow
def test_random_members_are_the_same_models_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    check_members(Lfm2Exporter(), member, tmp_path, scale=0.6)


def test_the_norms_of_attention_are_what_the_rule_says() -> None:
    attention = build_operator(Layer.of("A", head_dim=8, qk_norm=True), 32)
    assert isinstance(attention, Attention)
    assert attention.q_norm is not None
    assert attention.q_norm.eps == EPS


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (f"{ATTENTION} F D[head_dim=16] F", "layer 2 is D[head_dim=16]: lfm2 has layers for C, A, F alone"),
        (f"{ATTENTION} F M2[head_dim=16] F", "layer 2 is M2[head_dim=16]: lfm2 has"),
        (f"GDN[head_dim=16] F {ATTENTION} F", "layer 0 is GDN[head_dim=16]: lfm2 has"),
        (f"GLA F {ATTENTION} F", "layer 0 is GLA: lfm2 has"),
        (f"C[conv=1] F {ATTENTION} F", "layer 0 is C[conv=1], with conv=1: lfm2 needs conv=2 or conv=3 or conv=4"),
        (f"C[conv=5] F {ATTENTION} F", "layer 0 is C[conv=5], with conv=5: lfm2 needs"),
        ("C F A[head_dim=16] F", "layer 2 is A[head_dim=16], with qk_norm=false: lfm2 needs qk_norm=true"),
        ("A[head_dim=16,window=8,qk_norm=true] F", ", with window=8: lfm2 needs window=none"),
        ("C F A[head_dim=16,qk_norm=all] F", "with qk_norm=all: lfm2 needs qk_norm=true"),
        ("A[head_dim=16,qk_norm=true,rope=0] F", "with rope=0: lfm2 needs rope=1"),
        ("A[head_dim=16,qk_norm=true,rope=0.9] F", "rope=0.9], with rope=0.875: lfm2 needs rope=1"),
        ("A[head_dim=16,qk_norm=true,gate=true] F", "with gate=true: lfm2 needs gate=false"),
        ("A[head_dim=16,heads=2,qk_norm=true] F", "with 2 heads of 16: those of lfm2 fill the width, 64"),
        (f"{ATTENTION} F[act=relu2]", "layer 1 is F[act=relu2], with act=relu2: lfm2 needs act=swiglu"),
        (f"{ATTENTION} F C F C[conv=4] F", "layer 4 is C[conv=4], with conv=4, and layer 2 is C, with 3: lfm2 has one"),
        (
            f"{ATTENTION} F C F[ratio=2]",
            "layer 3 is F[ratio=2], with inner=128 (by ratio), and layer 1 is F, with 192:",
        ),
        (
            "A[head_dim=16,qk_norm=true,kv_heads=1] F A[head_dim=16,qk_norm=true,kv_heads=2] F",
            "layer 2 is A[head_dim=16,kv_heads=2,qk_norm=true], with kv_heads=2, and layer 0 is A",
        ),
        (
            f"{ATTENTION} F A[head_dim=16,qk_norm=true,rope_base=500] F",
            "with rope_base=500, and layer 0 is A[head_dim=16,qk_norm=true], with 10000: lfm2 has one rope_theta",
        ),
        (f"{ATTENTION} F A[head_dim=32,qk_norm=true] F", "lfm2 has one num_attention_heads for all layers"),
        (f"{ATTENTION} F C", "layer 2 is C, with no F after it: lfm2 is made of pairs"),
        (f"{ATTENTION} C F", "layer 1 is C, where an F is due"),
        (f"F {ATTENTION} F", "layer 0 is F, where a mixer is due"),
        ("C F", "no layer is A: lfm2 counts the tokens in its cache by those of attention layers"),
    ],
)
def test_what_it_cannot_express_is_refused_by_name(layers: str, said: str) -> None:
    assert said in refusal(Lfm2Exporter(), layers)


def test_a_share_of_which_all_values_turn_is_the_whole() -> None:
    assert refusal(Lfm2Exporter(), "A[head_dim=16,qk_norm=true,rope=0.97] F C F") == ""


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ({"meta_tokens": 4}, "meta_tokens is 4: lfm2 has none"),
        ({"head_norm": True}, "head_norm is true: lfm2 does not divide its logits"),
        ({"norm_eps": 1e-5}, "norm_eps is 1e-05: lfm2 has one for all norms, and attention's is 1e-06"),
    ],
)
def test_a_model_with_what_it_has_not_is_refused(rest: dict[str, object], said: str, tmp_path: Path) -> None:
    assert refusal(Lfm2Exporter(), f"C F {ATTENTION} F") == ""
    assert refusal(Lfm2Exporter(), f"C F {ATTENTION} F", **rest) == said
    model = HybridLM(Architecture.from_dict({"layers": f"C F {ATTENTION} F", "width": 64, "vocab": 97, **rest}))
    with pytest.raises(ValueError, match=re.escape(f"{said}; --to yaml writes any design")):
        Lfm2Exporter().write(model, tmp_path / "folder")
    assert not list(tmp_path.iterdir())
