"""What the exporters of native families share, on a small real family: llama."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from nfsearch.export import Winner
from nfsearch.export.native import NativeExporter, own_head
from nfsearch.ops.attention import Attention
from nfsearch.ops.ffn import FeedForward
from nfsearch.ops.model import HybridLM
from nfsearch.report.result import RunResult
from nfsearch.space import Architecture
from nfsearch.space.family import Expressed
from tests.nfsearch.families import check_members, compare, drawn


class LlamaExporter(NativeExporter):
    family, model_class = "llama", "LlamaForCausalLM"
    paired = True
    operators: ClassVar = {
        "A": Expressed(
            numbers={
                "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
                "rope_base": "rope_theta",
            },
            only={"window": (None,), "qk_norm": (False,), "rope": (1.0,), "gate": (False,)},
        ),
        "F": Expressed(numbers={"inner": "intermediate_size"}, only={"act": ("swiglu",)}),
    }  # fmt: skip

    def config(self, architecture: Architecture) -> dict[str, Any]:
        fields = super().config(architecture)
        rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
        return fields | {"rms_norm_eps": architecture.norm_eps, "rope_parameters": rope}

    def weights(self, model: HybridLM) -> dict[str, Tensor]:
        found = own_head(model)
        found |= {"model.embed_tokens.weight": model.embedding.weight, "model.norm.weight": model.norm.weight}
        norms = ("input_layernorm", "post_attention_layernorm")
        for index, (block, operator) in enumerate(zip(model.blocks, model.operators(), strict=True)):
            place = f"model.layers.{index // 2}"
            found[f"{place}.{norms[index % 2]}.weight"] = block.norm.weight
            match operator:
                case Attention():
                    parts = operator.layout.split(operator.qkv.weight.T)[:3]
                    named = {f"self_attn.{name}_proj": part.T for name, part in zip("qkv", parts, strict=True)}
                    named["self_attn.o_proj"] = operator.out_proj.weight
                case FeedForward():
                    gate, up = operator.layout.split(operator.gate_up.weight.T)
                    named = {"mlp.gate_proj": gate.T, "mlp.up_proj": up.T, "mlp.down_proj": operator.down.weight}
            found |= {f"{place}.{name}.weight": weight for name, weight in named.items()}
        return found


LLAMA = LlamaExporter()


def member(rng: random.Random) -> Architecture:
    width, head_dim = rng.choice((32, 64)), rng.choice((8, 16))
    kv_heads = rng.choice([n for n in (1, 2, 4) if width // head_dim % n == 0])
    mixer = f"A[head_dim={head_dim},kv_heads={kv_heads},rope_base={rng.choice((500.0, 10000.0))}]"
    layers = f"({mixer} F[ratio={rng.choice((1, 2.5))}]){{{rng.randint(1, 3)}}}"
    rest = dict(vocab=rng.randint(50, 99), norm_eps=rng.choice((1e-5, 1e-6)), tied_head=rng.random() < 0.5)
    return Architecture.parse(layers, width=width, **rest)


@pytest.mark.slow
def test_random_members_are_the_same_models_in_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    check_members(LLAMA, member, tmp_path, count=4, scale=0.6)
    other = drawn(member(random.Random(0)), scale=0.6)
    with torch.no_grad():
        other.norm.weight[0] += 1e-3
    with pytest.raises(AssertionError, match=r"member 0, .*, logits/1: "):  # so that what differs would be noticed
        compare(LLAMA, other, tmp_path, 0)


@pytest.mark.parametrize(
    ("layers", "rest", "said"),
    [
        ("A F D F", {}, "layer 2 is D: llama has layers for A, F alone"),
        (
            "A F A[window=8] F", {},
            "layer 2 is A[window=8], with window=8: llama needs window=none",
        ),
        (
            "A F A[kv_heads=4] F", {},
            "layer 2 is A[kv_heads=4], with kv_heads=4, and layer 0 is A, with 1: "
            "llama has one num_key_value_heads for all layers",
        ),
        (
            "A F A F[ratio=2]", {},
            "layer 3 is F[ratio=2], with inner=1024 (by ratio), and layer 1 is F, with 1536: "
            "llama has one intermediate_size for all layers",
        ),
        ("A F F", {}, "layer 2 is F, where a mixer is due: llama is made of pairs, a mixer and the F after it"),
        ("A A F", {}, "layer 1 is A, where an F is due: llama is made of pairs, a mixer and the F after it"),
        ("A F A", {}, "layer 2 is A, with no F after it: llama is made of pairs, a mixer and the F after it"),
        ("A F", {"meta_tokens": 2}, "meta_tokens is 2: llama has none"),
        ("A F", {"head_norm": True}, "head_norm is true: llama does not divide its logits"),
        ("A F A[rope_base=10000] F[act=swiglu]", {}, ""),
    ],
)  # fmt: skip
def test_a_refusal_names_the_layer_the_setting_and_the_rule(layers: str, rest: dict[str, Any], said: str) -> None:
    assert LLAMA.refusal(Architecture.parse(layers, width=512, **rest)) == said


def test_what_cannot_be_expressed_is_refused_before_any_training(result: RunResult, tmp_path: Path) -> None:
    def unneeded() -> Any:
        raise AssertionError("nothing is to be trained")

    with pytest.raises(ValueError, match="meta_tokens is 8: llama has none; --to yaml writes any design"):
        LLAMA.export(Winner(result, result.candidates[0], unneeded, unneeded), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_folder_has_all_that_a_family_needs(tmp_path: Path) -> None:
    model = drawn(member(random.Random(0)))
    folder = LLAMA.write(model, tmp_path / "model", tokenizer="bytes")
    names = {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert {path.name for path in folder.iterdir()} == names | {"tokenizer.json", "tokenizer_config.json"}
    card = (folder / "README.md").read_text()
    assert 'from_pretrained("model")' in card
    assert "trust_remote_code" not in card
    assert "LlamaForCausalLM of transformers" in card
