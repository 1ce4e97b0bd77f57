"""What the exporters of native families share: a member of a family that transformers has leaves without code of ours.

A family of its own is one file, `nfsearch/export/NAME.py`, with a subclass of `NativeExporter`, and an entry point. It
says, without torch, what the family can express (see `nfsearch.space.family`), the config of an architecture, and,
with torch, the weights by the names of the family's class:

    class LlamaExporter(NativeExporter):
        family, model_class = "llama", "LlamaForCausalLM"
        paired = True
        operators = {
            "A": Expressed(numbers={"heads": "num_attention_heads", ...}, only={"window": (None,), ...}),
            "F": Expressed(numbers={"inner": "intermediate_size"}, only={"act": ("swiglu",)}),
        }

        def config(self, architecture):
            return super().config(architecture) | {"rms_norm_eps": architecture.norm_eps}

        def weights(self, model):
            found = own_head(model) | ...

`tests/nfsearch/families.py` checks the folders of random members against transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from nfsearch.export.folder import FolderExporter
from nfsearch.space import Architecture
from nfsearch.space.family import Family

if TYPE_CHECKING:
    from torch import Tensor

    from nfsearch.ops.model import HybridLM

LENGTH = 2**15  # what a config says is the longest text; runtimes reserve memory for it, and nothing depends on it


def own_head(model: HybridLM) -> dict[str, Tensor]:
    """The weight of a head that is not the embedding, by the name that it has in every family."""
    return {} if model.own_head is None else {"lm_head.weight": model.own_head.weight}


class NativeExporter(Family, FolderExporter):
    """Writes a folder that `AutoModelForCausalLM` opens with a class of transformers, `model_class`."""

    model_class: ClassVar[str]
    ties: ClassVar[bool] = True  # whether the class can take the embedding for the head; else that is written twice

    def config(self, architecture: Architecture) -> dict[str, Any]:
        """The fields that all families have, and the numbers that the layers decide."""
        layers = architecture.layers
        fields = {
            "architectures": [self.model_class],
            "model_type": self.family,
            "vocab_size": architecture.vocab,
            "hidden_size": architecture.width,
            "num_hidden_layers": len(layers) // 2 if self.paired else len(layers),
            "max_position_embeddings": LENGTH,
            "tie_word_embeddings": self.ties and architecture.tied_head,
            "use_cache": True,
        }
        for layer in layers:
            fields |= self.numbers(layer, architecture.width)
        return fields

    def opening(self, architecture: Architecture, name: str) -> list[str]:
        return [
            "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{name}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n```',
            f"It is a `{self.family}` model ({self.model_class} of transformers) and runs wherever these do; nothing "
            "of nfsearch is needed.",
        ]
