"""A candidate as a Hugging Face model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nfsearch.export.choose import require_free
from nfsearch.export.exporter import Winner
from nfsearch.proxies import Trains
from nfsearch.space import Architecture
from nfsearch.support.files import whole
from nfsearch.support.versions import to_install, versions

if TYPE_CHECKING:
    from nfsearch.ops.model import HybridLM


class HubExporter:
    """A folder that `AutoModelForCausalLM.from_pretrained` opens once `nfsearch.hf` was imported: the candidate trained
    as the search trained it."""

    def export(self, winner: Winner, out: Path) -> Path:
        require_free(out)
        try:
            import nfsearch.hf  # noqa: F401  (before the training: it may be missing)
        except ImportError as error:
            raise ValueError(f"an export to hf cannot be made here: {error}") from None
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
    the model's, ImportError without transformers.
    """
    from nfsearch.hf import NFSearchConfig, NFSearchForCausalLM

    folder, architecture = Path(folder), model.architecture
    require_free(folder)
    if winner is not None and winner.record.digest != architecture.digest:
        raise ValueError(
            f"candidate {winner.record.number} is {winner.record.digest}, but the model given is {architecture.digest}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with whole(folder) as scratch:
        scratch.mkdir()
        end = _write_tokenizer(tokenizer, scratch) if tokenizer else None
        config = NFSearchConfig(**architecture.to_dict())
        config.eos_token_id = config.pad_token_id = end
        config.architectures = [NFSearchForCausalLM.__name__]
        with _no_progress_bar():
            NFSearchForCausalLM(config, model).save_pretrained(scratch)
        (scratch / "README.md").write_text(_card(architecture, folder.name, winner), encoding="utf-8")
    return folder


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """transformers draws a bar even for one small file."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _write_tokenizer(name: str, folder: Path) -> int | None:
    """tokenizer.json and what AutoTokenizer needs beside it; returns the id that ends a document, if there is one."""
    from nfsearch.proxies.tokenizers import load_tokenizer

    loaded = load_tokenizer(name)
    content = _byte_tokenizer() if name == "bytes" else Path(name).expanduser().read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
    last = loaded.encode([""])[0]
    end = int(last[-1]) if len(last) else None
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
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
    extras = "hf,fla-layers" if any(layer.op.startswith("fla:") for layer in architecture.layers) else "hf"
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [nfsearch, hybrid]\n---",
        f"# {name}",
        "A hybrid language model found by architecture search with nfsearch. It was trained only as long as the search "
        "trains a candidate: good for checking the model, not for use.",
        f"    {architecture}",
        f"```python\nimport nfsearch.hf  # registers the classes; {to_install(extras)}\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n```',
        "Sequences in a batch must have equal lengths: recurrent layers cannot skip padding.",
    ]
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
