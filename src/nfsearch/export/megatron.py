"""A candidate as the arguments of a hybrid model of Megatron-LM, which trains it from the beginning.

Source: Megatron-LM at commit d98e8a6 (August 2026, megatron-core 0.20): megatron/core/models/hybrid
(hybrid_layer_allocation.py: the symbols of the pattern; hybrid_layer_specs.py: the layers), megatron/core/ssm (Mamba2,
Gated DeltaNet) and megatron/training/arguments.py. `tests/nfsearch/megatron_arguments.py` has it
read and check them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nfsearch.export.choose import require_free_file
from nfsearch.export.exporter import Winner, require_expressed
from nfsearch.space import Architecture, Layer
from nfsearch.space.family import Expressed, Family
from nfsearch.support.files import write_atomically

SYMBOLS = {"M2": "M", "GDN": "G", "A": "*", "F": "-"}  # of the layers in a pattern
_SPEC = "megatron.core.models.hybrid.hybrid_layer_specs hybrid_stack_spec"
_FLAGS = {"qk-layernorm", "attention-output-gate"}  # numbers that are given by being there
_HEADER = """\
# A candidate of an architecture search as arguments of Megatron-LM (commit d98e8a6, megatron-core 0.20), for bash:
#     source {name}
#     torchrun ... pretrain_hybrid.py "${{MODEL_ARGS[@]}}" --seq-length ... --max-position-embeddings ...
# The design: {architecture}, {parameters:,} parameters with the {vocab:,} tokens of the search (digest {digest}).
MODEL_ARGS=(
"""


class MegatronExporter(Family):
    """A file of bash that holds the model's arguments; no weights."""

    family = "megatron"
    operators = {  # noqa: RUF012
        "M2": Expressed(
            numbers={
                "heads": "mamba-num-heads",
                "head_dim": "mamba-head-dim",
                "state": "mamba-state-dim",
                "groups": "mamba-num-groups",
            },
            only={"conv": (4,)},
        ),
        "GDN": Expressed(
            numbers={
                "heads": "linear-num-value-heads",
                "key_heads": "linear-num-key-heads",
                "key_dim": "linear-key-head-dim",
                "value_dim": "linear-value-head-dim",
                "conv": "linear-conv-kernel-dim",
            }
        ),
        "A": Expressed(
            numbers={
                "heads": "num-attention-heads",
                "kv_heads": "num-query-groups",
                "head_dim": "kv-channels",
                "window": "window-size",
                "rope": "rotary-percent",
                "rope_base": "rotary-base",
                "qk_norm": "qk-layernorm",
                "gate": "attention-output-gate",
            },
            only={"qk_norm": (False, True)},
        ),
        "F": Expressed(numbers={"inner": "ffn-hidden-size", "act": "activation"}),
    }

    def layer_refusal(self, layer: Layer, width: int) -> str:
        said = super().layer_refusal(layer, width)
        if not said and layer.op == "A" and not float(base := layer.values["rope_base"] or 0).is_integer():
            return f"{layer}, with rope_base={base}: megatron needs a whole number"
        return said

    def numbers(self, layer: Layer, width: int) -> dict[str, Any]:
        """See `Family.numbers`. Layers without a window may stand beside those that have one, and without positions the
        base of their angles is none."""
        found = super().numbers(layer, width)
        if layer.op == "GDN":
            found["linear-num-key-heads"] = found["linear-num-key-heads"] or found["linear-num-value-heads"]
        if found.get("window-size", 0) is None:
            del found["window-size"]
        if layer.op == "A" and not found["rotary-percent"]:
            del found["rotary-base"]
        return found

    def export(self, winner: Winner, out: Path) -> Path:
        require_free_file(out)
        architecture = winner.architecture
        require_expressed(self, architecture)
        header = _HEADER.format(
            name=shlex.quote(out.name),
            architecture=architecture,
            parameters=architecture.parameters,
            vocab=architecture.vocab,
            digest=architecture.digest,
        )
        lines = (f"    {shlex.join(argument)}\n" for argument in self.arguments(architecture))
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, header + "".join(lines) + ")\n")
        return out

    def arguments(self, architecture: Architecture) -> Iterator[tuple[str, ...]]:
        """Each with its values."""
        layers = architecture.layers
        yield "--hybrid-layer-pattern", "".join(SYMBOLS[layer.op] for layer in layers)
        yield "--spec", *_SPEC.split()
        yield "--hidden-size", str(architecture.width)
        numbers: dict[str, Any] = {}
        for layer in layers:
            numbers |= self.numbers(layer, architecture.width)
        act, window = numbers.pop("activation", None), numbers.pop("window-size", None)
        rope, base = numbers.pop("rotary-percent", 0), numbers.pop("rotary-base", None)
        if "num-attention-heads" in numbers:
            yield ("--group-query-attention",)
        else:
            yield "--num-attention-heads", "1"  # asked for, though no layer has any
        for name, value in numbers.items():
            if name not in _FLAGS:
                yield f"--{name}", str(value)
            elif value:
                yield (f"--{name}",)
        if window is not None:
            seen = ",".join("1" if layer.op == "A" and layer.values["window"] else "0" for layer in layers)
            yield "--window-size", f"{window - 1},0"  # positions before the current one, and after it
            yield "--window-attn-skip-freq", f"[{seen}]"  # 1: this layer of the pattern has the window
        yield "--position-embedding-type", "rope" if rope else "none"
        if rope:
            yield "--rotary-percent", str(rope)
            yield "--rotary-base", f"{base:.0f}"
        if act is not None:
            yield ("--swiglu" if act == "swiglu" else "--squared-relu",)
        yield "--normalization", "RMSNorm"
        yield "--norm-epsilon", f"{architecture.norm_eps:g}"
        yield ("--disable-bias-linear",)
        if not architecture.tied_head:
            yield ("--untie-embeddings-and-output-weights",)
        yield "--init-method-std", "0.02"
        yield "--attention-dropout", "0"
        yield "--hidden-dropout", "0"
