"""The model of this folder as torchtitan 0.3.0 trains it. In the folder:

    torchrun --nproc-per-node 8 -m torchtitan.train --module torchtitan_spec --config train

Found and written by nfsearch; the model's code is modeling_nfsearch.py, beside this file. `train` begins with weights
drawn anew; with --checkpoint.enable --checkpoint.initial-load-in-hf it begins with those of the folder.

Layers with a state cannot be cut along the text, so the model is trained data-parallel alone: sharded (FSDP2),
replicated, or both. Rows of packed documents are read through from one document to the next.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from modeling_nfsearch import NFSearchConfig, NFSearchForCausalLM
from torch import Tensor
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torchtitan.components.checkpoint import CheckpointManager
from torchtitan.components.loss import CrossEntropyLoss
from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
from torchtitan.config import TORCH_DTYPE_MAP, ParallelismConfig, TrainingConfig
from torchtitan.distributed.compile import apply_compile
from torchtitan.distributed.fsdp import disable_fsdp_gradient_division, get_fsdp_reshard_after_forward_policy
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.protocols import BaseModel, ModelSpec, StateDictAdapter
from torchtitan.trainer import Trainer

FOLDER = Path(__file__).resolve().parent
PREFIX = "lm."  # of the folder's names of weights, in torchtitan's
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Candidate(BaseModel):
    """Tokens [batch, time] to logits [batch, time, vocab]."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseModel.Config):
        folder: str = str(FOLDER)

        def update_from_config(self, *, config: Any, **_: Any) -> None:
            for axis in ("tensor", "context", "pipeline", "expert"):
                if (degree := getattr(config.parallelism, f"{axis}_parallel_degree")) > 1:
                    raise ValueError(f"parallelism.{axis}_parallel_degree is {degree}: this model trains at 1 alone")

        def get_nparams_and_flops(self, model: "Candidate", seq_len: int) -> tuple[int, int]:
            """Parameters, and FLOPs a token as torchtitan counts them: recurrences apart, which are small."""
            count = sum(weight.numel() for weight in model.parameters())
            config = model.lm.config
            multiplied = count if config.tie_word_embeddings else count - config.vocab_size * config.hidden_size
            attended = sum(
                layer["heads"] * layer["head_dim"] * min(seq_len, layer["window"] or seq_len)
                for layer in config.layers
                if layer["operator"] == "attention"
            )
            return count, 6 * multiplied + 12 * attended

    def __init__(self, config: Config) -> None:
        super().__init__()
        said = json.loads((Path(config.folder) / "config.json").read_text(encoding="utf-8"))
        said.pop("dtype")  # torchtitan's own to choose
        self.lm = NFSearchForCausalLM(NFSearchConfig(**said))

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """`positions` say where a row's documents begin, which is not looked at."""
        return self.lm(input_ids=tokens, use_cache=False).logits

    def init_states(self, *, buffer_device: torch.device | None = None) -> None:
        self.lm.init_weights()  # which also ties the head to the embedding again

    def verify_module_protocol(self) -> None:
        """Its modules are PyTorch's, and none of them is configured by torchtitan."""


class Adapter(StateDictAdapter):
    """Between torchtitan's names and the folder's, where a tied head is not written."""

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        found = {name.removeprefix(PREFIX): value for name, value in state_dict.items()}
        if self._tied:
            found.pop(HEAD, None)
        return found

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        found = dict(hf_state_dict)
        if self._tied:
            found[HEAD] = found[EMBEDDING]
        return {PREFIX + name: value for name, value in found.items()}

    @property
    def _tied(self) -> bool:
        folder = Path(self.model_config.folder)
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))["tie_word_embeddings"]


def parallelize(
    model: Candidate,
    *,
    parallel_dims: Any,
    training: Any,
    parallelism: Any,
    compile_config: Any,
    ac_config: Any,
    dump_folder: str,
) -> Candidate:
    """Activation checkpoints, torch.compile and FSDP2, layer by layer."""
    body = model.lm.model
    if ac_config is not None:
        ac_config.build(dump_folder=dump_folder).apply(body)
    if compile_config.enable and "model" in compile_config.components:
        apply_compile(body, compile_config=compile_config, parallel_dims=parallel_dims)
    axes = ["dp_replicate", "fsdp"] if parallel_dims.dp_replicate_enabled else ["fsdp"]
    how: dict[str, Any] = {
        "mesh": parallel_dims.get_mesh(axes),
        "mp_policy": MixedPrecisionPolicy(
            param_dtype=TORCH_DTYPE_MAP[training.mixed_precision_param],
            reduce_dtype=TORCH_DTYPE_MAP[training.mixed_precision_reduce],
            cast_forward_inputs=False,
        ),
        "reshard_after_forward": get_fsdp_reshard_after_forward_policy(parallelism.fsdp_reshard_after_forward, False),
    }
    if training.enable_cpu_offload:
        how["offload_policy"] = CPUOffloadPolicy()
    for layer in body.layers:
        fully_shard(layer, **how)
    fully_shard(model, **how)  # the rest: embedding and head, which may be one, meta tokens, final norm
    disable_fsdp_gradient_division(model)  # torchtitan divides by the number of tokens of all processes
    return model


def train() -> Trainer.Config:
    """A training on C4 by AdamW; every setting can be given on the command line."""
    spec = ModelSpec(
        name="nfsearch",
        flavor=FOLDER.name,
        model=Candidate.Config(),
        parallelize_fn=parallelize,
        pipelining_fn=None,
        post_optimizer_build_fn=None,
        state_dict_adapter=Adapter,
    )
    return Trainer.Config(
        model_spec=spec,
        hf_assets_path=str(FOLDER),
        loss=CrossEntropyLoss.Config(),
        optimizer=default_adamw(lr=8e-4),
        lr_scheduler=LRSchedulersContainer.Config(warmup_steps=200, decay_ratio=0.2, decay_type="linear"),
        training=TrainingConfig(local_batch_size=8, seq_len=2048, steps=10_000, disable_cuda_graphs=True),
        dataloader=HuggingFaceTextDataLoader.Config(dataset="c4"),
        parallelism=ParallelismConfig(spmd_backend="partial_dtensor"),  # no weight is sharded but by FSDP
        checkpoint=CheckpointManager.Config(interval=500),
        activation_checkpoint=None,
    )
