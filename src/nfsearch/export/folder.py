"""Folders that transformers opens, and what is in each of them."""

from __future__ import annotations

import json
import shutil
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from nfsearch.export.choose import require_free
from nfsearch.export.exporter import Winner, require_expressed
from nfsearch.proxies import Trains
from nfsearch.space import Architecture
from nfsearch.support.files import whole
from nfsearch.support.versions import versions

if TYPE_CHECKING:
    from torch import Tensor

    from nfsearch.ops.model import HybridLM


class FolderExporter(ABC):
    """Writes config.json, model.safetensors, the tokenizer, generation_config.json and a model card, whole or not at
    all. A subclass says what it can express, and what is in the first two."""

    code: ClassVar[tuple[Path, ...]] = ()  # files that go into the folder as they are

    @abstractmethod
    def refusal(self, architecture: Architecture) -> str:
        """See `nfsearch.export.exporter.Expresses`."""

    @abstractmethod
    def config(self, architecture: Architecture) -> dict[str, Any]:
        """The fields of config.json, `dtype` and the ids of tokens apart, of an architecture that can be expressed."""

    @abstractmethod
    def weights(self, model: HybridLM) -> dict[str, Tensor]:
        """The weights by the names that they have in the folder. They may share memory with the model's."""

    @abstractmethod
    def opening(self, architecture: Architecture, name: str) -> list[str]:
        """Paragraphs of the model card: how a folder of this name is opened."""

    def export(self, winner: Winner, out: Path) -> Path:
        require_free(out)
        require_expressed(self, winner.architecture)  # before the training
        model = winner.train()
        proxy = winner.proxy()
        tokenizer = proxy.tokenizer if isinstance(proxy, Trains) else None
        return self.write(model.cpu(), out, tokenizer=tokenizer, winner=winner)

    def write(
        self, model: HybridLM, folder: str | Path, *, tokenizer: str | None = None, winner: Winner | None = None
    ) -> Path:
        """Writes the folder of a model.

        `tokenizer` is what `Corpus.tokenizer` holds: `bytes`, or the path of a tokenizer.json. The winner goes into the
        model card. Raises FileExistsError if the folder exists and is not empty, ValueError if the winner's digest is
        not the model's, or for a model that cannot be expressed.
        """
        from safetensors.torch import save_file

        folder, architecture = Path(folder), model.architecture
        require_free(folder)
        require_expressed(self, architecture)
        if winner is not None and winner.record.digest != architecture.digest:
            raise ValueError(
                f"candidate {winner.record.number} is {winner.record.digest}, but the model given is "
                f"{architecture.digest}"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole(folder) as scratch:
            scratch.mkdir()
            end = _write_tokenizer(tokenizer, scratch) if tokenizer else None
            # Copies, as safetensors refuses tensors that share memory, such as the rows of one that was stacked.
            weights = {name: tensor.detach().clone().contiguous() for name, tensor in self.weights(model).items()}
            dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
            tokens = {"bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
            config = self.config(architecture) | tokens | {"dtype": dtype}
            _write_json(scratch / "config.json", config)
            _write_json(scratch / "generation_config.json", tokens | {"use_cache": config["use_cache"]})
            for file in self.code:
                shutil.copyfile(file, scratch / file.name)
            save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
            card = _card(architecture, folder.name, self.opening(architecture, folder.name), winner)
            (scratch / "README.md").write_text(card, encoding="utf-8")
        return folder


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tokenizer(name: str, folder: Path) -> int | None:
    """tokenizer.json and what AutoTokenizer needs beside it; returns the id that ends a document, if there is one. What
    the file says of tokens around a text, of truncation and of padding is left out, as training follows none of it."""
    from nfsearch.proxies.tokenizers import load_tokenizer

    end = load_tokenizer(name).end
    content = _byte_tokenizer()
    if name != "bytes":
        given = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
        content = json.dumps({**given, "post_processor": None, "truncation": None, "padding": None}, ensure_ascii=False)
    (folder / "tokenizer.json").write_text(content, encoding="utf-8")
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


def _card(architecture: Architecture, name: str, opening: list[str], winner: Winner | None) -> str:
    """The model card; `opening` are paragraphs about how the folder is opened."""
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [nfsearch, hybrid]\n---",
        f"# {name}",
        "A hybrid language model found by architecture search with nfsearch. It was trained only as long as the search "
        "trains a candidate: good for checking the model, not for use.",
        f"    {architecture}",
        *opening,
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
