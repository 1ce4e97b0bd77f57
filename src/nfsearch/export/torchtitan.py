"""A candidate as a model that torchtitan trains: the Hugging Face folder, and a model spec beside it."""

from __future__ import annotations

from pathlib import Path

from nfsearch.export.hub import CODE, HubExporter
from nfsearch.space import Architecture

SPEC, RELEASE = Path(__file__).with_name("torchtitan_spec.py"), "0.3.0"


class TorchtitanExporter(HubExporter):
    """A folder that transformers opens, as `--to hf` writes it, and that torchtitan trains, from the weights in it or
    from new ones."""

    code = (CODE, SPEC)

    def refusal(self, architecture: Architecture) -> str:
        for index, layer in enumerate(architecture.layers):
            if layer.op.startswith("fla:"):
                return (
                    f"layer {index} is {layer}: torchtitan draws all weights, and only its own package can draw those"
                )
        return super().refusal(architecture)

    def opening(self, architecture: Architecture, name: str) -> list[str]:
        train = f"torchrun --nproc-per-node 8 -m torchtitan.train --module {SPEC.stem} --config train"
        return [
            *super().opening(architecture, name),
            f"torchtitan {RELEASE} (`pip install torchtitan=={RELEASE}`, and a PyTorch newer than 2.13, which lacks "
            f"`torch.distributed.set_timeout`) trains it by `{SPEC.name}`, data-parallel: FSDP2, activation "
            "checkpoints, torch.compile. In this folder, with weights drawn anew as the search draws them:",
            f"    {train}",
            "With those of the folder, and back to a `model.safetensors` of the same form at the end:",
            f"    {train} --checkpoint.enable --checkpoint.initial-load-in-hf --checkpoint.last-save-in-hf",
            "`--help` lists the settings: C4 for 10,000 steps of AdamW, unless said otherwise. Tokens are those of the "
            "folder's `tokenizer.json`, or of the folder in `--hf-assets-path`.",
        ]
