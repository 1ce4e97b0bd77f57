"""A candidate as a native model of transformers' qwen3_5: Gated DeltaNet and gated attention, a SwiGLU after each.

Source of every name and rule: transformers/models/qwen3_5 (5.23), `Qwen3_5TextConfig` and `Qwen3_5ForCausalLM`, the
text model of Qwen3.5. Not qwen3_next, whose mixers compute the same: its FFNs are mixtures of experts, as in all that
was released of it, unless each layer is listed as an exception, and it packs the projections of Gated DeltaNet by key
head into two matrices; qwen3_5 is dense, and keeps q|k|v, gate, beta and decay apart as we do.

Differences that the weights make up for, exactly:

- Its RMS norms multiply by 1 + weight (that of Gated DeltaNet alone by weight): one is subtracted.
- Rows of q_proj are, head by head, those of the query and then those of its gate.
- It has one `rms_norm_eps`, where ours differ: rms(s x) with s^2 eps is rms(x) with eps. So the residual stream, by all
  that writes into it, is s times ours, and queries and keys before their norm likewise by a factor of their own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from nfsearch.export.native import NativeExporter
from nfsearch.space import Architecture, Layer
from nfsearch.space.family import Expressed

if TYPE_CHECKING:
    from torch import Tensor

    from nfsearch.ops.attention import Attention
    from nfsearch.ops.gated_deltanet import GatedDeltaNet
    from nfsearch.ops.model import HybridLM

DELTA_EPS = 1e-5  # of the norm of Gated DeltaNet's heads, before which nothing can be scaled


class Qwen35Exporter(NativeExporter):
    """A folder of the class Qwen3_5ForCausalLM."""

    family, model_class = "qwen3_5", "Qwen3_5ForCausalLM"
    paired = True
    required = "A"
    operators = {  # noqa: RUF012
        "GDN": Expressed(
            numbers={
                "heads": "linear_num_value_heads", "key_heads": "linear_num_key_heads",
                "key_dim": "linear_key_head_dim", "value_dim": "linear_value_head_dim",
                "conv": "linear_conv_kernel_dim",
            },
            # Other taps are none that the kernels of causal_conv1d take, which the class runs where they are installed.
            only={"conv": (2, 3, 4)},
        ),
        "A": Expressed(
            numbers={
                "heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim",
                "rope": "partial_rotary_factor", "rope_base": "rope_theta",
            },
            only={"window": (None,), "qk_norm": (True,), "gate": (True,)},
        ),
        "F": Expressed(numbers={"inner": "intermediate_size"}, only={"act": ("swiglu",)}),
    }  # fmt: skip

    def numbers(self, layer: Layer, width: int) -> dict[str, Any]:
        found = super().numbers(layer, width)
        if layer.op == "GDN":
            found["linear_num_key_heads"] = found["linear_num_key_heads"] or found["linear_num_value_heads"]
        return found

    def config(self, architecture: Architecture) -> dict[str, Any]:
        said = super().config(architecture)
        rope = {name: said.pop(name) for name in ("rope_theta", "partial_rotary_factor")}
        return said | {
            "model_type": "qwen3_5_text",  # qwen3_5 is the model with a vision tower around it
            "layer_types": [
                "linear_attention" if layer.op == "GDN" else "full_attention" for layer in architecture.layers[::2]
            ],
            "rope_parameters": {"rope_type": "default", **rope},
            "rms_norm_eps": _eps(architecture),
            "hidden_act": "silu",
        }

    def weights(self, model: HybridLM) -> dict[str, Tensor]:
        from nfsearch.ops.attention import Attention
        from nfsearch.ops.ffn import FeedForward
        from nfsearch.ops.gated_deltanet import GatedDeltaNet
        from nfsearch.ops.model import Block

        architecture = model.architecture
        eps = _eps(architecture)
        stream = math.sqrt(eps / architecture.norm_eps)
        found = {"model.embed_tokens.weight": model.embedding.weight * stream}
        # A head that is the embedding is `stream` times ours too.
        found["model.norm.weight"] = model.norm.weight / (stream if architecture.tied_head else 1) - 1
        if not architecture.tied_head:
            found["lm_head.weight"] = model.output.weight
        norms = ("input_layernorm", "post_attention_layernorm")
        for index, (block, operator) in enumerate(zip(model.blocks, model.operators(), strict=True)):
            assert isinstance(block, Block)
            at = f"model.layers.{index // 2}"
            found[f"{at}.{norms[index % 2]}.weight"] = block.norm.weight - 1
            if isinstance(operator, GatedDeltaNet):
                named = {f"linear_attn.{name}": weight for name, weight in _delta(operator, stream).items()}
            elif isinstance(operator, Attention):
                named = {f"self_attn.{name}": weight for name, weight in _attention(operator, stream, eps).items()}
            else:
                assert isinstance(operator, FeedForward)
                gate, up = operator.gate_up.weight.split(operator.inner)
                named = {
                    "mlp.gate_proj.weight": gate, "mlp.up_proj.weight": up,
                    "mlp.down_proj.weight": operator.down.weight * stream,
                }  # fmt: skip
            found |= {f"{at}.{name}": weight for name, weight in named.items()}
        return found


def _eps(architecture: Architecture) -> float:
    """Of all norms."""
    return DELTA_EPS if any(layer.op == "GDN" for layer in architecture.layers) else architecture.norm_eps


def _delta(operator: GatedDeltaNet, stream: float) -> dict[str, Tensor]:
    """The weights of Gated DeltaNet, whose results are `stream` times ours."""
    rows = {
        name: operator.in_proj.weight[operator.layout.start(group) :][: operator.layout.size(group)]
        for name, group in (("qkv", "q|k|v"), ("z", "gate"), ("b", "beta"), ("a", "decay"))
    }
    return {f"in_proj_{name}.weight": weight for name, weight in rows.items()} | {
        "conv1d.weight": operator.conv[:, None],
        "A_log": operator.A_log,
        "dt_bias": operator.dt_bias,
        "norm.weight": operator.norm.weight,
        "out_proj.weight": operator.out_proj.weight * stream,
    }


def _attention(operator: Attention, stream: float, eps: float) -> dict[str, Tensor]:
    """The weights of attention, whose results are `stream` times ours, and whose norms have this eps."""
    import torch

    assert operator.q_norm is not None
    assert operator.k_norm is not None
    q, k, v, gate = operator.qkv.weight.split(operator.layout.sizes)
    raised = math.sqrt(eps / operator.q_norm.eps)
    both = [z.unflatten(0, (operator.heads, operator.head_dim)) for z in (q * raised, gate)]
    return {
        "q_proj.weight": torch.cat(both, dim=1).flatten(0, 1),
        "k_proj.weight": k * raised,
        "v_proj.weight": v,
        "q_norm.weight": operator.q_norm.weight - 1,
        "k_norm.weight": operator.k_norm.weight - 1,
        "o_proj.weight": operator.out_proj.weight * stream,
    }
