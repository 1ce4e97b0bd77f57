"""A candidate as a Hugging Face model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nfsearch.export.folder import FolderExporter
from nfsearch.space import Architecture

if TYPE_CHECKING:
    from torch import Tensor

    from nfsearch.ops.model import HybridLM

CODE, MODEL = Path(__file__).with_name("modeling_nfsearch.py"), "NFSearchForCausalLM"


class HubExporter(FolderExporter):
    """A folder that `AutoModelForCausalLM.from_pretrained` opens, with PyTorch and transformers alone, by the modelling
    file in it: the candidate trained as the search trained it."""

    code: ClassVar[tuple[Path, ...]] = (CODE,)

    def refusal(self, architecture: Architecture) -> str:
        from nfsearch.hf import folder_layers

        try:
            folder_layers(architecture)
        except ValueError as error:
            return str(error)
        return ""

    def config(self, architecture: Architecture) -> dict[str, Any]:
        from nfsearch.hf import MODEL_TYPE, folder_layers

        classes = {"AutoConfig": "NFSearchConfig", "AutoModel": "NFSearchModel", "AutoModelForCausalLM": MODEL}
        return {
            "architectures": [MODEL],
            "auto_map": {auto: f"{CODE.stem}.{name}" for auto, name in classes.items()},
            "model_type": MODEL_TYPE,
            "vocab_size": architecture.vocab,
            "hidden_size": architecture.width,
            "notation": architecture.notation,
            "layers": folder_layers(architecture),
            "meta_tokens": architecture.meta_tokens,
            "head_norm": architecture.head_norm,
            "rms_norm_eps": architecture.norm_eps,
            "tie_word_embeddings": architecture.tied_head,
            "use_cache": not _foreign(architecture),
        }

    def weights(self, model: HybridLM) -> dict[str, Tensor]:
        from nfsearch.hf import folder_weights

        return folder_weights(model)

    def opening(self, architecture: Architecture, name: str) -> list[str]:
        lines = [
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)\n```',
            f"It needs PyTorch and transformers (5.20 or newer): `{CODE.name}` is its code. With nfsearch installed, "
            f'`nfsearch.hf.load("{name}")` gives the same model on fused kernels.',
            "Texts of unequal length in a batch are padded on either side, with an `attention_mask`; several texts in "
            "one row are refused, because recurrent layers would mix them.",
        ]
        if _foreign(architecture):
            lines.append(
                "Some layers are imported from flash-linear-attention (`pip install flash-linear-attention`); it then "
                "generates without a cache, reading the whole text for every token."
            )
        return lines


def _foreign(architecture: Architecture) -> bool:
    """Whether a layer is another package's, which is imported for it."""
    return any(layer.op.startswith("fla:") for layer in architecture.layers)
