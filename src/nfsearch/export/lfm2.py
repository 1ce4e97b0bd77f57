"""A candidate as a native model of transformers' lfm2: gated short convolutions and attention, an FFN after each.

Source of every name and rule: transformers/models/lfm2 (5.23), `Lfm2Config` and `Lfm2ForCausalLM`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nfsearch.export.native import NativeExporter, own_head
from nfsearch.space import Architecture, Layer
from nfsearch.space.family import Expressed

if TYPE_CHECKING:
    from torch import Tensor

    from nfsearch.ops.model import HybridLM
    from nfsearch.ops.operator import Operator

EPS = 1e-6  # of attention's norms of queries and keys; lfm2 has one for these and all other norms


class Lfm2Exporter(NativeExporter):
    """A folder of the class Lfm2ForCausalLM."""

    family, model_class = "lfm2", "Lfm2ForCausalLM"
    paired = True
    required = "A"
    operators = {  # noqa: RUF012
        # Other taps are none that the kernels of causal_conv1d take, which the class runs where they are installed.
        "C": Expressed(numbers={"conv": "conv_L_cache"}, only={"conv": (2, 3, 4)}),
        "A": Expressed(
            numbers={"heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "rope_base": "rope_theta"},
            only={"window": (None,), "qk_norm": (True,), "rope": (1.0,), "gate": (False,)},
        ),
        "F": Expressed(numbers={"inner": "intermediate_size"}, only={"act": ("swiglu",)}),
    }

    def model_refusal(self, architecture: Architecture) -> str:
        if architecture.norm_eps != EPS:
            return f"norm_eps is {architecture.norm_eps:g}: lfm2 has one for all norms, and attention's is {EPS:g}"
        return super().model_refusal(architecture)

    def layer_refusal(self, layer: Layer, width: int) -> str:
        said = super().layer_refusal(layer, width)
        if not said and layer.op == "A" and (heads := layer.shape(width)["heads"]) * layer.values["head_dim"] != width:
            return f"{layer}, with {heads} heads of {layer.values['head_dim']}: those of lfm2 fill the width, {width}"
        return said

    def config(self, architecture: Architecture) -> dict[str, Any]:
        said = super().config(architecture)
        return said | {
            "rope_parameters": {"rope_type": "default", "rope_theta": said.pop("rope_theta")},
            "layer_types": ["conv" if layer.op == "C" else "full_attention" for layer in architecture.layers[::2]],
            "norm_eps": architecture.norm_eps,
            "conv_bias": False,
            "block_auto_adjust_ff_dim": False,  # intermediate_size is what it is
        }

    def weights(self, model: HybridLM) -> dict[str, Tensor]:
        found = own_head(model)
        found |= {"model.embed_tokens.weight": model.embedding.weight, "model.embedding_norm.weight": model.norm.weight}
        for index, (block, operator) in enumerate(zip(model.blocks, model.operators(), strict=True)):
            at = f"model.layers.{index // 2}"
            found[f"{at}.{'ffn_norm' if index % 2 else 'operator_norm'}.weight"] = block.norm.weight  # type: ignore[union-attr,assignment]
            found |= {f"{at}.{name}": weight for name, weight in _named(operator).items()}
        return found


def _named(operator: Operator) -> dict[str, Tensor]:
    """The weights of an operator by the names that they have within a layer of lfm2."""
    from nfsearch.ops.attention import Attention
    from nfsearch.ops.ffn import FeedForward
    from nfsearch.ops.gated_shortconv import GatedShortConv

    if isinstance(operator, GatedShortConv):
        return {
            "conv.in_proj.weight": operator.in_proj.weight,
            "conv.conv.weight": operator.conv[:, None],
            "conv.out_proj.weight": operator.out_proj.weight,
        }
    if isinstance(operator, FeedForward):
        gate, up = operator.gate_up.weight.split(operator.inner)
        return {
            f"feed_forward.{name}.weight": w for name, w in (("w1", gate), ("w3", up), ("w2", operator.down.weight))
        }
    assert isinstance(operator, Attention)
    assert operator.q_norm is not None
    assert operator.k_norm is not None
    q, k, v = (rows.mT for rows in operator.layout.split(operator.qkv.weight.mT))
    found = {"q_proj": q, "k_proj": k, "v_proj": v, "out_proj": operator.out_proj.weight}
    found |= {"q_layernorm": operator.q_norm.weight, "k_layernorm": operator.k_norm.weight}
    return {f"self_attn.{name}.weight": weight for name, weight in found.items()}
