"""Hybrid models in Hugging Face's clothes. Importing this module registers them with transformers' Auto classes.

import nfsearch.hf
model = AutoModelForCausalLM.from_pretrained(folder)      # a folder that `nfsearch export --to hf` wrote
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nfsearch.ops.model import HybridLM
from nfsearch.space import Architecture
from nfsearch.support.versions import to_install

try:
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedModel
    from transformers.configuration_utils import PretrainedConfig
    from transformers.modeling_outputs import CausalLMOutputWithPast
except ImportError as error:
    raise ImportError(f"nfsearch.hf needs transformers ({error}): {to_install('hf')}") from error

_FIRST_RESERVE = 256  # text tokens a new cache has room for, beyond the prompt


class NFSearchConfig(PretrainedConfig):
    """The fields of `Architecture.to_dict()`, as fields of the config."""

    model_type = "nfsearch"
    attribute_map = {"hidden_size": "width", "vocab_size": "vocab"}  # noqa: RUF012 (transformers' own form)

    width: int = 128
    layers: str = "F"
    vocab: int = 32000
    meta_tokens: int = 0
    head_norm: bool = False
    norm_eps: float = 1e-6

    @property
    def architecture(self) -> Architecture:
        """Raises ValueError if the fields describe no architecture."""
        names = ("width", "layers", "vocab", "meta_tokens", "head_norm", "norm_eps")
        return Architecture.from_dict({name: getattr(self, name) for name in names})

    @property
    def num_hidden_layers(self) -> int:
        """Residual layers, token mixers and feed-forward ones counted alike."""
        return len(self.architecture.layers)


class NFSearchCache:
    """The state of a `HybridLM` after some tokens. Room for attention's keys and values is doubled when it runs out."""

    is_compileable = False  # read by `generate`

    def __init__(self, model: HybridLM, batch: int, length: int) -> None:
        self._model, self._batch, self._length = model, batch, length
        self.state = model.init_state(batch, length)
        self.seen = 0  # text tokens; meta tokens are the model's own business

    @property
    def position(self) -> int:
        """As the operators count: meta tokens included, 0 before anything was read."""
        return self.seen + self._model.architecture.meta_tokens if self.seen else 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Text tokens read."""
        return self.seen

    def reserve(self, length: int) -> None:
        """Makes room for `length` text tokens.

        A longer state begins as a shorter one does: slots of keys and values are in order of position until the first
        of them is used again, which happens only in a state that is as long as its window, and that one never grows.
        """
        if length <= self._length:
            return
        self._length = max(length, 2 * self._length)
        grown = self._model.init_state(self._batch, self._length)
        for new, old in zip(grown, self.state, strict=True):
            for name, tensor in old.items():
                new[name][tuple(slice(size) for size in tensor.shape)] = tensor
        self.state = grown

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keeps the sequences that beam search goes on with: beam_idx int64 [batch]."""
        for held in self.state:
            for name, tensor in held.items():
                held[name] = tensor.index_select(0, beam_idx.to(tensor.device))


class NFSearchForCausalLM(PreTrainedModel, GenerationMixin):
    """A `HybridLM` that transformers can load, save and generate with."""

    config_class = NFSearchConfig
    base_model_prefix = "model"
    _is_stateful = True  # recurrent states cannot be wound back: no assisted generation

    def __init__(self, config: NFSearchConfig, model: HybridLM | None = None) -> None:
        super().__init__(config)
        self.model = HybridLM(config.architecture) if model is None else model
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """HybridLM draws its own weights; transformers must not draw others over them."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `generate` then leaves making the cache to `forward`

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.embedding

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: NFSearchCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits [batch, time, vocab] of input_ids [batch, time]; with labels also the loss of each next token.

        With a cache, continues after the tokens it holds, without gradients; `use_cache` alone makes one. Left out, it
        is taken for inference only. `logits_to_keep` > 0 gives logits of the last tokens only.

        Raises ValueError for padding, which recurrent operators would read as text, and for inputs other than tokens.
        """
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            raise ValueError("NFSearchForCausalLM reads input_ids, and no inputs_embeds")
        if past_key_values is not None and not isinstance(past_key_values, NFSearchCache):
            raise ValueError(f"past_key_values must come from this model, not be a {type(past_key_values).__name__}")
        fresh = past_key_values is None or not past_key_values.seen
        if fresh and attention_mask is not None and not attention_mask.all():
            raise ValueError(
                "attention_mask hides tokens, but recurrent operators read every token: padding would change the "
                "result. Batch only sequences of equal length, or give them one at a time"
            )
        if use_cache is None:
            use_cache = not self.training and not torch.is_grad_enabled()
        if past_key_values is None and use_cache:
            batch, time = input_ids.shape
            past_key_values = NFSearchCache(self.model, batch, time + _FIRST_RESERVE)
        if past_key_values is None:
            logits = self.model.head(self.model.hidden(input_ids)[:, -logits_to_keep:])  # -0: all of them
        else:
            logits = self._continue(input_ids, past_key_values, logits_to_keep)
        loss = None
        if labels is not None:
            if logits_to_keep:
                raise ValueError("labels need the logits of every token, but logits_to_keep cuts them off")
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(logits.device))
        output = CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=past_key_values)  # type: ignore[arg-type]
        return output.to_tuple() if return_dict is False else output

    @torch.no_grad()
    def _continue(self, tokens: Tensor, cache: NFSearchCache, keep: int) -> Tensor:
        """Logits [batch, keep or time, vocab] after the tokens in the cache, which takes up the new ones."""
        cache.reserve(cache.seen + tokens.shape[1])
        if cache.seen and tokens.shape[1] == 1:
            position = torch.tensor(cache.position, device=tokens.device)
            logits = self.model.step(tokens[:, 0], cache.state, position)[:, None]
        else:
            logits = self.model.head(self.model.hidden(tokens, cache.state, cache.position)[:, -keep:])
        cache.seen += tokens.shape[1]
        return logits


AutoConfig.register(NFSearchConfig.model_type, NFSearchConfig, exist_ok=True)
AutoModelForCausalLM.register(NFSearchConfig, NFSearchForCausalLM, exist_ok=True)
