"""Has Megatron-LM itself read and check the arguments of random designs, and compares what it found:

    git clone https://github.com/NVIDIA/Megatron-LM megatron && git -C megatron checkout d98e8a6
    python -m tests.nfsearch.megatron_arguments megatron

It needs no GPU, but what Megatron-LM imports. It is no part of the suite.
"""

from __future__ import annotations

import contextlib
import io
import os
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
# What a training needs besides, and what does without Transformer Engine and Apex.
OTHERS = (
    "--micro-batch-size 1 --seq-length 128 --max-position-embeddings 128 --train-iters 1 --lr 1e-4 "
    "--tokenizer-type NullTokenizer --vocab-size 1000 --no-rope-fusion --no-gradient-accumulation-fusion "
    "--no-persist-layer-norm --no-masked-softmax-fusion --no-bias-dropout-fusion"
)


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
                if rope := has["rope"]:
                    found |= {"position_embedding_type": "rope", "rotary_percent": rope}
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
    os.environ.update(NO_VCS_VERSION="1", WORLD_SIZE="1", RANK="0", CUDA_DEVICE_MAX_CONNECTIONS="1")
    typing.override = typing_extensions.override  # type: ignore[attr-defined]  # which Python 3.12 has
    from megatron.core.models.hybrid.hybrid_layer_allocation import parse_hybrid_pattern
    from megatron.training.arguments import core_transformer_config_from_args, parse_args, validate_args

    space, rng, exporter = SpaceSettings.model_validate(SPACE).build(1000), random.Random(0), MegatronExporter()
    for _ in range(100):
        design = space.sample(rng).architecture
        words = [word for argument in exporter.arguments(design) for word in argument]
        sys.argv = ["pretrain_hybrid.py", *words, *OTHERS.split()]
        arguments, wanted = parse_args(), expected(design)
        read = vars(arguments)
        assert {name: read[name] for name in wanted} == wanted, design
        assert read["spec"] == ["megatron.core.models.hybrid.hybrid_layer_specs", "hybrid_stack_spec"]
        assert parse_hybrid_pattern(read["hybrid_layer_pattern"]).main_pattern == wanted["hybrid_layer_pattern"]
        with contextlib.redirect_stdout(io.StringIO()):  # it prints all arguments
            validate_args(arguments)
        config = core_transformer_config_from_args(arguments)
        assert config.num_layers == len(design.layers)
        assert (config.hidden_dropout, config.attention_dropout, config.add_bias_linear) == (0, 0, False)
    print("100 designs were read as they are, and found valid")


if __name__ == "__main__":
    main(sys.argv[1])
