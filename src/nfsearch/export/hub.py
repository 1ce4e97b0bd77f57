"""A candidate as a Hugging Face model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsearch.export.choose import require_free
from nfsearch.export.exporter import Winner
from nfsearch.proxies import Trains
from nfsearch.space import Architecture
from nfsearch.support.files import whole
from nfsearch.support.versions import versions

if TYPE_CHECKING:
    from nfsearch.ops.model import HybridLM

CODE, MODEL = Path(__file__).with_name("modeling_nfsearch.py"), "NFSearchForCausalLM"


class HubExporter:
    """A folder that `AutoModelForCausalLM.from_pretrained` opens, with PyTorch and transformers alone: the candidate
    trained as the search trained it."""

    def export(self, winner: Winner, out: Path) -> Path:
        from nfsearch.hf import folder_layers

        require_free(out)
        folder_layers(winner.architecture)  # before the training: it may not be possible
        model = winner.train()
        proxy = winner.proxy()
        tokenizer = proxy.tokenizer if isinstance(proxy, Trains) else None
        return export_hf(model.cpu(), out, tokenizer=tokenizer, winner=winner)


def export_hf(
    model: HybridLM, folder: str | Path, *, tokenizer: str | None = None, winner: Winner | None = None
) -> Path:
    """Writes the folder of a model.

    `tokenizer` is what `Corpus.tokenizer` holds: `bytes`, or the path of a tokenizer.json. The winner goes into the
    model card. Raises FileExistsError if the folder exists and is not empty, ValueError if the winner's digest is not
    the model's, or for a layer that the folder has no code for.
    """
    from safetensors.torch import save_file

    from nfsearch.hf import folder_layers, folder_weights

    folder, architecture = Path(folder), model.architecture
    require_free(folder)
    if winner is not None and winner.record.digest != architecture.digest:
        raise ValueError(
            f"candidate {winner.record.number} is {winner.record.digest}, but the model given is {architecture.digest}"
        )
    layers = folder_layers(architecture)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole(folder) as scratch:
        scratch.mkdir()
        end = _write_tokenizer(tokenizer, scratch) if tokenizer else None
        weights = folder_weights(model)
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        said = {"eos_token_id": end, "pad_token_id": end, "use_cache": not _foreign(architecture)}
        _write_json(scratch / "config.json", _config(architecture, layers) | said | {"dtype": dtype})
        _write_json(scratch / "generation_config.json", said)
        shutil.copyfile(CODE, scratch / CODE.name)
        save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
        (scratch / "README.md").write_text(_card(architecture, folder.name, winner), encoding="utf-8")
    return folder


def _config(architecture: Architecture, layers: list[dict[str, Any]]) -> dict[str, Any]:
    """config.json, without the ids of tokens."""
    from nfsearch.hf import MODEL_TYPE

    classes = {"AutoConfig": "NFSearchConfig", "AutoModel": "NFSearchModel", "AutoModelForCausalLM": MODEL}
    return {
        "architectures": [MODEL],
        "auto_map": {auto: f"{CODE.stem}.{name}" for auto, name in classes.items()},
        "model_type": MODEL_TYPE,
        "vocab_size": architecture.vocab,
        "hidden_size": architecture.width,
        "notation": architecture.notation,
        "layers": layers,
        "meta_tokens": architecture.meta_tokens,
        "head_norm": architecture.head_norm,
        "rms_norm_eps": architecture.norm_eps,
        "tie_word_embeddings": True,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _foreign(architecture: Architecture) -> bool:
    """Whether a layer is another package's, which is imported for it."""
    return any(layer.op.startswith("fla:") for layer in architecture.layers)


def _write_tokenizer(name: str, folder: Path) -> int | None:
    """tokenizer.json and what AutoTokenizer needs beside it; returns the id that ends a document, if there is one."""
    from nfsearch.proxies.tokenizers import load_tokenizer

    loaded = load_tokenizer(name)
    content = _byte_tokenizer() if name == "bytes" else Path(name).expanduser().read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    last = loaded.encode([""])[0]
    end = int(last[-1]) if len(last) else None
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    settings["padding_side"] = "left"  # so that what is generated follows the text
    if end is not None:
        from tokenizers import Tokenizer

        settings["eos_token"] = settings["pad_token"] = Tokenizer.from_str(content).id_to_token(end)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return end


def _byte_tokenizer() -> str:
    """A tokenizer.json whose ids 0 to 255 are the bytes of UTF-8 and 256 ends a document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    # The library writes each byte as one printable character: itself if it is one, else the next from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    vocab = {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer.to_str(pretty=True)


def _card(architecture: Architecture, name: str, winner: Winner | None) -> str:
    """The model card."""
    foreign = _foreign(architecture)
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [nfsearch, hybrid]\n---",
        f"# {name}",
        "A hybrid language model found by architecture search with nfsearch. It was trained only as long as the search "
        "trains a candidate: good for checking the model, not for use.",
        f"    {architecture}",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)\n```',
        f"It needs PyTorch and transformers (5.20 or newer): `{CODE.name}` is its code. With nfsearch installed, "
        f'`nfsearch.hf.load("{name}")` gives the same model on fused kernels.',
        "Texts of unequal length in a batch are padded on either side, with an `attention_mask`; several texts in one "
        "row are refused, because recurrent layers would mix them.",
    ]
    if foreign:
        lines.append(
            "Some layers are imported from flash-linear-attention (`pip install flash-linear-attention`); it then "
            "generates without a cache, reading the whole text for every token."
        )
    rows = {"parameters": f"{architecture.parameters:,}", "digest": architecture.digest}
    if winner is not None:
        result, record = winner.result, winner.record
        rows |= {"candidate": str(record.number), "origin": record.origin}
        for metric in result.shown():
            if (found := record.metrics.get(metric.name)) is not None:
                error = f" ± {metric.unit.words(found.error, 2)}" if found.error else ""
                rows.setdefault(metric.name, f"{metric.unit.words(found.value)}{error}")  # parameters stay exact
        rows |= {"trained on": str(winner.settings.get("data")), "training": str(record.fidelity)}
        rows |= {"device": result.run.device, "command": f"`{result.run.command}`"}
    rows |= {"versions": ", ".join(f"{library} {version}" for library, version in versions().items())}
    cells = ["| {} | {} |".format(key, value.replace("\n", " ").replace("|", "\\|")) for key, value in rows.items()]
    return "\n\n".join([*lines, "\n".join(["| | |", "|---|---|", *cells])]) + "\n"
