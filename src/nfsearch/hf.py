"""The form of a folder that `nfsearch export --to hf` writes, and the way back: from a folder to nfsearch's own model.

The folder needs nothing of nfsearch, transformers opens it. `load` makes a `HybridLM` of it, which decodes and trains
on nfsearch's kernels, and needs no transformers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsearch.space import Architecture, Layer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from nfsearch.ops.model import HybridLM

MODEL_TYPE = "nfsearch"
OPERATORS = (
    "attention", "deltanet", "gated_deltanet", "gated_linear_attention", "gated_short_convolution", "mamba2", "ffn",
)  # it has code for  # fmt: skip
_NAMES = (
    ("embedding.", "model.embed_tokens."),
    ("meta", "model.meta_tokens"),
    ("blocks.", "model.layers."),
    ("norm.", "model.norm."),
    ("own_head.", "lm_head."),
)  # how weights are called by HybridLM, and in the folder


def load(folder: str | Path, *, device: torch.device | str = "cpu") -> HybridLM:
    """The model of a folder, in the dtype in which its weights are kept there.

    Also of one that transformers has saved after training. Raises ValueError where the folder holds another model, or
    other weights than its model has, and OSError where there is none.
    """
    import torch
    from safetensors.torch import load_file

    from nfsearch.ops.model import HybridLM

    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict) or config.get("model_type") != MODEL_TYPE or not config.get("notation"):
        raise ValueError(f"{folder} holds no model that this version of `nfsearch export --to hf` wrote")
    architecture = Architecture.parse(
        config["notation"],
        width=config["hidden_size"],
        vocab=config["vocab_size"],
        meta_tokens=config["meta_tokens"],
        head_norm=config["head_norm"],
        norm_eps=config["rms_norm_eps"],
        tied_head=config["tie_word_embeddings"],
    )
    if config["layers"] != folder_layers(architecture):
        raise ValueError(f"{folder}/config.json: the layers are not those of its notation, {config['notation']}")
    files = sorted(folder.glob("*.safetensors"))
    weights = {name: tensor for file in files for name, tensor in load_file(file, device=str(device)).items()}
    if architecture.tied_head:
        weights.pop("lm_head.weight", None)  # the embedding once more
    with torch.device("meta"):
        model = HybridLM(architecture)
    wanted = {folder_name(name): name for name in model.state_dict()}
    if odd := sorted(wanted.keys() ^ weights.keys()):
        which = "lacks" if odd[0] in wanted else "has, but its config does not,"
        raise ValueError(f"{folder} {which} {odd[0]}{f' and {len(odd) - 1} other weights' if odd[1:] else ''}")
    model.load_state_dict({wanted[name]: tensor for name, tensor in weights.items()}, assign=True)
    return model.eval().requires_grad_(True)


def folder_layers(architecture: Architecture) -> list[dict[str, Any]]:
    """What `layers` of the folder's config.json says. Raises ValueError, with the layer, for operators that the folder
    has no code for."""
    return [_folder_layer(i, layer, architecture.width) for i, layer in enumerate(architecture.layers)]


def _folder_layer(index: int, layer: Layer, width: int) -> dict[str, Any]:
    shape = layer.shape(width)
    if layer.op.startswith("fla:"):
        where = {"package": "flash-linear-attention", "module": "fla.layers", "name": shape["layer"]}
        return {"operator": "foreign", **where, "arguments": {"hidden_size": width, **shape["settings"]}}
    if layer.spec.long_name not in OPERATORS or not layer.spec.module.startswith("nfsearch."):
        raise ValueError(
            f"layer {index} is {layer}, of {layer.spec.module.split(':')[0]}: a folder that needs nothing of nfsearch "
            f"has no code for it, only for {', '.join(OPERATORS)} and fla:LAYER"
        )
    return {"operator": layer.spec.long_name, **shape}


def folder_weights(model: HybridLM) -> dict[str, Tensor]:
    """The weights of a model by the names that they have in the folder."""
    return {folder_name(name): tensor.detach().contiguous() for name, tensor in model.state_dict().items()}


def folder_name(name: str) -> str:
    """What a weight of HybridLM is called in the folder."""
    for ours, theirs in _NAMES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours).replace(".operator.", ".mixer.", 1)
    raise ValueError(f"unknown weight {name}")
