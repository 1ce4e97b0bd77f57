"""A candidate as a native model of transformers' nemotron_h: Mamba2, attention without positions, and squared ReLU.

Source of every name and rule: transformers/models/nemotron_h (5.23), `NemotronHConfig` and `NemotronHForCausalLM`; the
weights are named as in the checkpoints that NVIDIA published, which other runtimes of the family read as well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nfsearch.export.native import NativeExporter
from nfsearch.space import Architecture
from nfsearch.space.family import Expressed

if TYPE_CHECKING:
    from torch import Tensor

    from nfsearch.ops.model import HybridLM
    from nfsearch.ops.operator import Operator

EPS = 1e-5  # of Mamba2's gated norm
_KINDS = {"M2": "M", "A": "*", "F": "-"}
_LEAST_STEP = 1e-30


class NemotronHExporter(NativeExporter):
    """A folder of the class NemotronHForCausalLM.

    The family has one epsilon for all norms. Where a model has Mamba2, whose own is fixed, the residual stream is kept
    larger by the square root of the epsilons' ratio: the embedding and whatever is added to the stream are written so
    many times as large, and each norm of the stream gives what it gave. A normalised head is written as the matrix of
    the normalised rows.
    """

    family, model_class = "nemotron_h", "NemotronHForCausalLM"
    ties = False
    required = "A"
    operators = {  # noqa: RUF012
        "M2": Expressed(
            numbers={
                "heads": "mamba_num_heads", "head_dim": "mamba_head_dim", "groups": "n_groups",
                "state": "ssm_state_size", "conv": "conv_kernel",
            },
            only={"conv": (2, 3, 4)},  # which the kernels of causal_conv1d take, that run where they are installed
        ),
        "A": Expressed(
            numbers={"heads": "num_attention_heads", "kv_heads": "num_key_value_heads", "head_dim": "head_dim"},
            only={"rope": (0.0,), "window": (None,), "qk_norm": (False,), "gate": (False,)},
        ),
        "F": Expressed(numbers={"inner": "intermediate_size"}, only={"act": ("relu2",)}),
    }  # fmt: skip

    def model_refusal(self, architecture: Architecture) -> str:
        return super().model_refusal(replace(architecture, head_norm=False))

    def config(self, architecture: Architecture) -> dict[str, Any]:
        return super().config(architecture) | {
            "hybrid_override_pattern": "".join(_KINDS[layer.op] for layer in architecture.layers),
            "layer_norm_epsilon": _eps(architecture),
            "mlp_hidden_act": "relu2",
            "use_conv_bias": True,
            "mlp_bias": False,
            # Below it the class would raise the step of Mamba2 where it reads several tokens at once, and only there.
            "time_step_min": _LEAST_STEP,
        }

    def weights(self, model: HybridLM) -> dict[str, Tensor]:
        architecture = model.architecture
        scale = (_eps(architecture) / architecture.norm_eps) ** 0.5
        head = model.output.weight
        if architecture.head_norm:
            head = head / head.norm(dim=-1, keepdim=True)
        found = {
            "backbone.embeddings.weight": model.embedding.weight * scale,
            "backbone.norm_f.weight": model.norm.weight,
            "lm_head.weight": head,
        }
        for index, (block, operator) in enumerate(zip(model.blocks, model.operators(), strict=True)):
            at = f"backbone.layers.{index}"
            found[f"{at}.norm.weight"] = block.norm.weight  # type: ignore[union-attr]
            found |= {f"{at}.mixer.{name}": weight for name, weight in _named(operator, scale).items()}
        return found

    def opening(self, architecture: Architecture, name: str) -> list[str]:
        lines = [
            *super().opening(architecture, name),
            "Prompts of unequal length are padded on the left, as the tokenizer does it: what the class keeps of a "
            "text to go on from includes what follows its last token.",
        ]
        if architecture.tied_head:
            count = architecture.vocab * architecture.width
            lines.append(f"The class has a head of its own, which holds the embedding again: {count:,} weights more.")
        return lines


def _eps(architecture: Architecture) -> float:
    """The epsilon of all norms."""
    return EPS if any(layer.op == "M2" for layer in architecture.layers) else architecture.norm_eps


def _named(operator: Operator, scale: float) -> dict[str, Tensor]:
    """The weights of an operator by the names that they have within a layer; what it adds is `scale` times as large."""
    from nfsearch.ops.attention import Attention
    from nfsearch.ops.ffn import FeedForward
    from nfsearch.ops.mamba2 import Mamba2

    if isinstance(operator, FeedForward):
        return {"up_proj.weight": operator.gate_up.weight, "down_proj.weight": operator.down.weight * scale}
    out = operator.get_parameter("out_proj.weight") * scale
    if isinstance(operator, Attention):
        parts = zip("qkv", operator.qkv.weight.split(operator.layout.sizes[:3]), strict=True)
        return {f"{name}_proj.weight": part for name, part in parts} | {"o_proj.weight": out}
    assert isinstance(operator, Mamba2)
    named = {name: operator.get_parameter(name) for name in ("A_log", "D", "dt_bias", "in_proj.weight", "norm.weight")}
    convolution = {"conv1d.weight": operator.conv[:, None], "conv1d.bias": operator.conv_bias}
    return named | convolution | {"out_proj.weight": out}
