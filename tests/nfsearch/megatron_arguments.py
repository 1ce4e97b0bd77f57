"""Has the parser of Megatron-LM itself read the arguments of random designs, and compares what it found:

    git clone https://github.com/NVIDIA/Megatron-LM megatron && git -C megatron checkout d98e8a6
    python -m tests.nfsearch.megatron_arguments megatron

It needs no GPU, but what Megatron-LM imports. It is no part of the suite.
"""

from __future__ import annotations

import random
import sys
import typing
from typing import Any

import typing_extensions

from nfsearch.export.megatron import SYMBOLS, MegatronExporter
from nfsearch.space import Architecture, SpaceSettings
from nfsearch.space.family import values_of

SPACE = {
    "width": [256, 512],
    "where": {
        "heads": "A[heads=none|8,head_dim=32|64,kv_heads=1|2,window=none|128|256,rope=0|0.5|1,rope_base=10000|500000,"
        "qk_norm=false|true|all,gate=false|true]",
        "mixer": "M2[head_dim=32|64,groups=1|2,state=16|64] | D[head_dim=32] | heads "
        "| GDN[head_dim=64,expand_v=1|2,heads=none|4,key_heads=none|1]",
    },
    "layers": "(mixer F[ratio=2|3,act=swiglu|relu2]{0..1})*{1..8}",
    "serves": "megatron",
}


def expected(design: Architecture) -> dict[str, Any]:
    """What the parser has to find."""
    found: dict[str, Any] = {
        "hybrid_layer_pattern": "".join(SYMBOLS[layer.op] for layer in design.layers),
        "hidden_size": design.width,
        "position_embedding_type": "none",
        "window_size": None,
        "add_bias_linear": False,
        "untie_embeddings_and_output_weights": not design.tied_head,
        "normalization": "RMSNorm",
        "layernorm_epsilon": design.norm_eps,
    }
    windows = [0] * len(design.layers)
    for index, layer in enumerate(design.layers):
        has = values_of(layer, design.width)
        match layer.op:
            case "A":
                found |= {"num_attention_heads": has["heads"], "num_query_groups": has["kv_heads"]}
                found |= {"kv_channels": has["head_dim"], "qk_layernorm": has["qk_norm"]}
                found |= {"attention_output_gate": has["gate"], "group_query_attention": True}
                if has["rope"]:
                    found |= {"position_embedding_type": "rope", "rotary_percent": has["rope"]}
                    found |= {"rotary_base": has["rope_base"]}
                if has["window"]:
                    windows[index] = 1
                    found |= {"window_size": (has["window"] - 1, 0), "window_attn_skip_freq": windows}
            case "M2":
                found |= {"mamba_num_heads": has["heads"], "mamba_head_dim": has["head_dim"]}
                found |= {"mamba_state_dim": has["state"], "mamba_num_groups": has["groups"]}
            case "GDN":
                found |= {
                    "linear_num_value_heads": has["heads"],
                    "linear_num_key_heads": has["key_heads"] or has["heads"],
                }
                found |= {"linear_key_head_dim": has["key_dim"], "linear_value_head_dim": has["value_dim"]}
                found |= {"linear_conv_kernel_dim": has["conv"]}
            case "F":
                found |= {"ffn_hidden_size": has["inner"], "swiglu": has["act"] == "swiglu"}
                found |= {"squared_relu": has["act"] == "relu2"}
    return found


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    typing.override = typing_extensions.override  # type: ignore[attr-defined]  # which Python 3.12 has
    from megatron.core.models.hybrid.hybrid_layer_allocation import parse_hybrid_pattern
    from megatron.training.arguments import parse_args

    space, rng, exporter = SpaceSettings.model_validate(SPACE).build(1000), random.Random(0), MegatronExporter()
    for _ in range(100):
        design = space.sample(rng).architecture
        sys.argv = ["pretrain_hybrid.py", *(word for argument in exporter.arguments(design) for word in argument)]
        read = vars(parse_args())
        wanted = expected(design)
        assert {name: read[name] for name in wanted} == wanted, design
        assert read["spec"] == ["megatron.core.models.hybrid.hybrid_layer_specs", "hybrid_stack_spec"]
        assert parse_hybrid_pattern(read["hybrid_layer_pattern"]).main_pattern == wanted["hybrid_layer_pattern"]
    print("100 designs were read as they are")


if __name__ == "__main__":
    main(sys.argv[1])
