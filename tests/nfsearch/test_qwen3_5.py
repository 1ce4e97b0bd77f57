"""Members of transformers' qwen3_5: exported, opened by its own class; and what it cannot express."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from nfsearch.export.qwen3_5 import DELTA_EPS, Qwen35Exporter
from nfsearch.ops.gated_deltanet import GatedDeltaNet
from nfsearch.ops.operator import build_operator
from nfsearch.run.config import load_config
from nfsearch.space import Architecture, Layer
from nfsearch.space.notation import parse_layers
from tests.nfsearch.families import check_members, compare, drawn, refusal

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
QWEN = Qwen35Exporter()
A = "A[gate=true,head_dim=16,qk_norm=true]"
GDN = "GDN[head_dim=16]"


def member(rng: random.Random) -> Architecture:
    kv_heads, key_heads = rng.choice((1, 2)), rng.choice((1, 2))
    attention = Layer.of(
        "A", head_dim=rng.choice((8, 16)), heads=kv_heads * rng.choice((1, 3)), kv_heads=kv_heads, qk_norm=True,
        gate=True, rope=rng.choice((1.0, 0.75, 0.25, 0.0)), rope_base=rng.choice((10000.0, 1e7)),
    )  # fmt: skip
    delta = Layer.of(
        "GDN", head_dim=rng.choice((8, 16)), heads=key_heads * rng.choice((1, 2, 3)), key_heads=key_heads,
        expand_v=rng.choice((1, 2)), conv=rng.choice((2, 3, 4)),
    )  # fmt: skip
    ffn = Layer.of("F", ratio=rng.choice((1.0, 2.5)))
    mixers = [attention, *rng.choices((delta, delta, attention), k=rng.randint(0, 2))]
    rng.shuffle(mixers)
    return Architecture(
        32, tuple(layer for mixer in mixers for layer in (mixer, ffn)), vocab=rng.choice((97, 128)),
        norm_eps=rng.choice((1e-6, 1e-5)), tied_head=rng.random() < 0.6,
    )  # fmt: skip


@pytest.mark.slow
def test_random_members_are_the_same_models_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    # The norm of Gated DeltaNet's heads may raise errors of rounding three-hundredfold (1 / sqrt(eps)), in their model
    # and in ours alike. So weights, and logits with them, are smaller.
    check_members(QWEN, member, tmp_path, scale=0.25)
    other = drawn(member(random.Random(0)), scale=0.25)
    with torch.no_grad():
        other.norm.weight[0] += 1e-3
    with pytest.raises(AssertionError, match=r"member 0, .*, logits/1: "):
        compare(QWEN, other, tmp_path, 0)


def test_the_norm_of_gated_deltanet_is_what_the_rule_says() -> None:
    operator = build_operator(Layer.of("GDN", head_dim=8), 32)
    assert isinstance(operator, GatedDeltaNet)
    assert operator.norm.eps == DELTA_EPS


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        (f"{A} F D[head_dim=16] F", "layer 2 is D[head_dim=16]: qwen3_5 has layers for GDN, A, F alone"),
        (f"{A} F M2[head_dim=16] F", "layer 2 is M2[head_dim=16]: qwen3_5 has"),
        (f"GLA F {A} F", "layer 0 is GLA: qwen3_5 has"),
        (f"C F {A} F", "layer 0 is C: qwen3_5 has"),
        ("A[head_dim=16,qk_norm=true] F", "with gate=false: qwen3_5 needs gate=true"),
        ("A[gate=true,head_dim=16] F", "with qk_norm=false: qwen3_5 needs qk_norm=true"),
        ("A[gate=true,head_dim=16,qk_norm=all] F", "with qk_norm=all: qwen3_5 needs qk_norm=true"),
        ("A[gate=true,head_dim=16,qk_norm=true,window=8] F", ", with window=8: qwen3_5 needs window=none"),
        (f"{A} F[act=relu2]", "layer 1 is F[act=relu2], with act=relu2: qwen3_5 needs act=swiglu"),
        (f"{A} F GDN[conv=1,head_dim=16] F", "with conv=1: qwen3_5 needs conv=2 or conv=3 or conv=4"),
        (f"{A} F {GDN} F GDN[conv=3,head_dim=16] F", "with conv=3, and layer 2 is GDN[head_dim=16], with 4: qwen3_5"),
        (
            f"{A} F {GDN} F GDN[head_dim=16,heads=3,key_heads=1] F",
            "with key_heads=1, and layer 2 is GDN[head_dim=16], with 3: qwen3_5 has one linear_num_key_heads",
        ),
        (f"{A} F {GDN} F GDN[head_dim=32] F", "qwen3_5 has one linear_num_value_heads for all layers"),
        (f"{A} F {GDN} F GDN[head_dim=16,expand_v=1] F", "value_dim=16 (by expand_v), and layer 2 is"),
        (
            f"{A} F A[gate=true,head_dim=16,kv_heads=2,qk_norm=true] F",
            "with kv_heads=2, and layer 0 is A[gate=true,head_dim=16,qk_norm=true], with 1: qwen3_5 has one num_key",
        ),
        (f"{A} F A[gate=true,head_dim=16,qk_norm=true,rope=0.5] F", "with rope=0.5, and layer 0 is"),
        (f"{A} F A[gate=true,head_dim=16,qk_norm=true,rope_base=500] F", "qwen3_5 has one rope_theta for all layers"),
        (f"{A} F A[gate=true,head_dim=16,heads=2,qk_norm=true] F", "one num_attention_heads for all layers"),
        (f"{A} F {GDN} F[ratio=2]", "layer 3 is F[ratio=2], with inner=128 (by ratio), and layer 1 is F, with 192:"),
        (f"{A} F {GDN}", "layer 2 is GDN[head_dim=16], with no F after it: qwen3_5 is made of pairs"),
        (f"{A} {GDN} F", "layer 1 is GDN[head_dim=16], where an F is due"),
        (f"F {A} F", "layer 0 is F, where a mixer is due"),
        (f"{GDN} F", "no layer is A: qwen3_5 counts the tokens in its cache by those of attention layers"),
    ],
)
def test_what_it_cannot_express_is_refused_by_name(layers: str, said: str) -> None:
    assert said in refusal(QWEN, layers)


@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ({"meta_tokens": 4}, "meta_tokens is 4: qwen3_5 has none"),
        ({"head_norm": True}, "head_norm is true: qwen3_5 does not divide its logits"),
        ({"norm_eps": 1e-5, "tied_head": False}, ""),
    ],
)
def test_a_model_with_what_it_has_not_is_refused(rest: dict[str, object], said: str) -> None:
    same = "GDN[head_dim=16,heads=3,key_heads=3]"  # as many as without saying so
    assert refusal(QWEN, f"{GDN} F {A} F {same} F", **rest) == said


@pytest.mark.parametrize(("head_dim", "rope"), [(256, 0.25), (98, 0.0204), (16, 0.3), (8, 0), (10, 1)])
def test_the_class_turns_as_many_values(head_dim: int, rope: float) -> None:
    layer = Layer.of("A", head_dim=head_dim, heads=2, rope=rope, gate=True, qk_norm=True)
    share = QWEN.numbers(layer, 64)["partial_rotary_factor"]
    assert int(head_dim * share) == layer.shape(64).get("rotary", head_dim)


def test_the_text_model_of_qwen3_5_0_8b_is_a_member_of_its_space_and_as_large_as_the_class_says() -> None:
    """By what is public of it, written down here once more."""
    transformers = pytest.importorskip("transformers")
    public = dict(
        layer_types=(["linear_attention"] * 3 + ["full_attention"]) * 6, hidden_size=1024, intermediate_size=3584,
        num_hidden_layers=24, num_attention_heads=8, num_key_value_heads=2, head_dim=256, linear_num_value_heads=16,
        linear_num_key_heads=16, linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4,
        vocab_size=248320, tie_word_embeddings=True, hidden_act="silu",
        rope_parameters={"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
    )  # fmt: skip
    space = load_config(EXPERIMENTS / "qwen3_5" / "config.yaml")[0].space.build(257)
    written = {
        "linear_attention": "GDN[heads=16,head_dim=128,expand_v=1] F[ratio=3.5]",
        "full_attention": "A[heads=8,kv_heads=2,head_dim=256,rope=0.25,rope_base=1e7,gate=true,qk_norm=true] "
        "F[ratio=3.5]",
    }
    layers = parse_layers(" ".join(written[kind] for kind in public["layer_types"]))
    architecture = space.architecture(1024, layers, 0)
    assert space.locate(architecture) is not None
    said = QWEN.config(architecture)
    assert {name: said[name] for name in public} == public
    with torch.device("meta"):
        theirs = transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig(**public))
    assert sum(p.numel() for p in theirs.parameters()) == architecture.parameters == 752_393_024
