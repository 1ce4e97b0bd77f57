"""An export to nemotron_h through llama.cpp: its converter and its runtime decode the tokens that our model decodes.

    pip download --no-deps --no-binary :all: llama-cpp-python && tar xzf llama_cpp_python-*.tar.gz   # for the converter
    pip install xllamacpp                                                                             # for the runtime
    python experiments/nemotron_h/llama_cpp.py llama_cpp_python-*/vendor/llama.cpp TOKENIZER.json

Where the converter is run beside transformers 5 it takes each nemotron_h for a mixture of experts, as the config class
has fields of these; it is made for transformers 4, which does not know the family, and then reads config.json itself.
Nor does it take tokenizers that it does not know: the tokens are compared by their numbers, so it is told one.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from nfsearch.export.nemotron_h import NemotronHExporter
from nfsearch.ops.model import HybridLM
from nfsearch.proxies.tokenizers import load_tokenizer
from nfsearch.space import Architecture

MAMBA, ATTENTION, MLP = "M2[head_dim=16,groups=2]", "A[heads=4,kv_heads=2,head_dim=16,rope=0]", "F[act=relu2]"
LAYERS = f"({MAMBA} {MLP} {ATTENTION} {MLP}){{2}} {MAMBA}"
PROMPT, NEW = [5, 77, 200, 3, 9, 150, 42], 64


def drawn(vocab: int) -> HybridLM:
    """A model with random weights, tied head and normalised logits, whose layers all matter."""
    torch.manual_seed(0)
    model = HybridLM(Architecture.parse(LAYERS, width=64, vocab=vocab, head_norm=True)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(0.2 * torch.randn_like(weight))
            else:
                weight.normal_(std=0.6 * weight.shape[-1] ** -0.5)
    return model


@torch.no_grad()
def ours(model: HybridLM) -> tuple[list[int], list[float]]:
    """The likeliest tokens after the prompt, and the logarithms of their probabilities."""
    tokens, found = torch.tensor([PROMPT]), []
    for _ in range(NEW):
        best = model(tokens)[:, -1].log_softmax(-1).max(-1)
        tokens = torch.cat((tokens, best.indices[:, None]), dim=1)
        found.append(float(best.values))
    return tokens[0, len(PROMPT) :].tolist(), found


def convert(converter: Path, folder: Path, out: Path) -> None:
    """Writes a gguf file in float32."""
    sys.path[:0] = [str(converter / "gguf-py"), str(converter)]
    import convert_hf_to_gguf
    from conversion import base

    def unknown(*_: Any, **__: Any) -> Any:
        raise ValueError("as transformers 4 says of nemotron_h")

    base.AutoConfig.from_pretrained = unknown
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    sys.argv = ["convert_hf_to_gguf.py", str(folder), "--outtype", "f32", "--outfile", str(out)]
    convert_hf_to_gguf.main()


def theirs(path: Path) -> tuple[list[int], list[float]]:
    """The same by llama.cpp, on the CPU with a cache in float32."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.warmup = str(path), 512, False
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    asked = {"prompt": PROMPT, "n_predict": NEW, "temperature": 0.0, "top_k": 1, "ignore_eos": True, "n_probs": 1}
    said = xllamacpp.Server(params).handle_completions(asked)
    found = said["choices"][0]["logprobs"]["content"]
    return [token["id"] for token in found], [token["logprob"] for token in found]


def main(converter: str, tokenizer: str) -> None:
    model = drawn(load_tokenizer(tokenizer).vocab)
    with tempfile.TemporaryDirectory() as scratch:
        folder = NemotronHExporter().write(model, Path(scratch) / "model", tokenizer=tokenizer)
        convert(Path(converter), folder, folder / "model.gguf")
        (tokens, exact), (got, found) = ours(model), theirs(folder / "model.gguf")
    same = sum(a == b for a, b in zip(tokens, got, strict=True))
    error = max(abs(a - b) for a, b in zip(exact, found, strict=True))
    print(f"{same} of {NEW} greedy tokens are the same; log probabilities differ by at most {error:.1e}")
    sys.exit(same < NEW)


if __name__ == "__main__":
    main(*sys.argv[1:])
