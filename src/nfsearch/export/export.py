"""A candidate taken out of a search: as an architecture with a training recipe, or as a Hugging Face model."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.space import Architecture
from nfsearch.support.files import write_atomically
from nfsearch.support.versions import versions

if TYPE_CHECKING:
    from nfsearch.ops.model import HybridLM

FORMAT = "nfsearch.architecture/1"

_HEADER = """\
# A candidate of an architecture search. `architecture` is the model; nfsearch.export.export.load_architecture reads it.
# `training` is a recipe for a full run, after Nemotron-Flash (arXiv 2511.18890); what the paper leaves open is marked.
# `proxy` is the short run that the search scored it with, and `measured` is what that run gave.
"""


def choose(result: RunResult, *, pick: int | None = None, max_latency_ms: float | None = None) -> CandidateRecord:
    """The candidate to export: number `pick`, or the one with the lowest first objective.

    `max_latency_ms` admits only candidates whose latency is at most that: of the first objective that is a latency,
    else of the first workload. Raises ValueError if nothing is left or the candidate picked has failed.
    """
    if pick is not None:
        record = result.candidate(pick)
        if record.state == "failed":
            raise ValueError(f"candidate {pick} has failed ({record.error}), so there is nothing to export")
        return record
    done = [record for record in result.candidates if record.state == "done"]
    if not done:
        raise ValueError("no candidate of this run has finished, so there is nothing to export")
    if max_latency_ms is not None:
        workloads = result.workloads()
        if not workloads:
            raise ValueError("this run measured no latency, so none can be the limit")
        name = next((objective.name for objective in result.objectives if objective.name in workloads), workloads[0])
        fastest = min(record.latency[name].seconds for record in done) * 1e3
        done = [record for record in done if record.latency[name].seconds * 1e3 <= max_latency_ms]
        if not done:
            raise ValueError(
                f"no candidate has a {name} of at most {max_latency_ms:g} ms: the fastest takes {fastest:.5g} ms"
            )
    return min(done, key=lambda record: record.values[result.objectives[0].name])


def require_free(path: str | Path) -> None:
    """Raises FileExistsError unless nothing, or an empty folder, is at `path`: an export never writes over anything."""
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already: name a new one for the export, or remove it first")


# --- yaml ------------------------------------------------------------------------------------------------------------


def export_yaml(result: RunResult, record: CandidateRecord, out: str | Path) -> Path:
    """Writes the architecture, a training recipe, and where both come from. Raises FileExistsError if `out` exists."""
    out = Path(out)
    if out.is_dir():
        raise FileExistsError(f"{out} is a folder: a YAML export is one file")
    require_free(out)
    proxy = dict(result.config.resolved.get("proxy") or {})
    fields = {
        "format": FORMAT,
        "architecture": record.architecture,
        "parameters": record.parameters,
        "digest": record.digest,
        "training": _recipe(proxy),
        "proxy": proxy,
        "measured": _measured(record),
        "provenance": _provenance(result, record),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, _HEADER + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110))
    return out


def load_architecture(path: str | Path) -> Architecture:
    """The architecture of a file that `export_yaml` wrote. Raises ValueError, naming the file, for any other."""
    try:
        fields = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise ValueError(f"no `format: {FORMAT}` in it")
        return Architecture.from_dict(fields["architecture"])
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not an exported architecture: {error}") from None


def _recipe(proxy: dict[str, Any]) -> dict[str, Any]:
    """The paper's pre-training (its section on training settings), with the search's own data and weight norm."""
    normalised = bool(proxy.get("weight_norm", True))
    return {
        "optimizer": "Adam" if normalised else "AdamW",
        "weight_decay": 0.0 if normalised else proxy.get("weight_decay", 0.0),
        "weight_norm": normalised,
        "betas": [0.9, 0.95],  # not in the paper
        "clip": 1.0,  # not in the paper
        "learning_rate": {"peak": 1e-3, "schedule": "cosine", "warmup": 0.01, "last": 0.1},
        "not_in_the_paper": [
            "betas",
            "clip",
            "learning_rate.warmup (share of the steps)",
            "learning_rate.last (share of the peak)",
        ],
        "dtype": "bfloat16",
        "sequence": 4096,
        "batch_tokens": 2_000_000,
        "tokens": 4_500_000_000_000,
        "long_context": {"tokens": 25_000_000_000, "sequence": 29_000, "when": "the last tokens of the run"},
        "data": proxy.get("data"),
        "tokenizer": proxy.get("tokenizer"),
    }


def _measured(record: CandidateRecord) -> dict[str, Any]:
    return {
        "loss": record.loss,
        "bits_per_byte": record.bits_per_byte,
        "perplexity": record.perplexity,
        "tokens": record.tokens,
        "seed": record.seed,
        "data": record.data,
        "fidelity": record.fidelity,
        "latency_ms": {
            name: {"estimate": latency.seconds * 1e3, "error": latency.error_seconds * 1e3}
            for name, latency in record.latency.items()
        },
    }


def _provenance(result: RunResult, record: CandidateRecord) -> dict[str, Any]:
    return {
        "candidate": record.number,
        "on_the_front": record.number in result.front,
        "origin": record.origin,
        "parents": record.parents,
        "run": {
            "command": result.run.command,
            "started": result.run.started.isoformat(),
            "device": result.run.device,
            "versions": result.run.versions,
        },
        "latency_table": result.table.provenance if result.table else None,
    }


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def export_hf(
    model: HybridLM,
    folder: str | Path,
    *,
    tokenizer: str | None = None,
    result: RunResult | None = None,
    record: CandidateRecord | None = None,
) -> Path:
    """Writes a folder that `AutoModelForCausalLM.from_pretrained` opens once `nfsearch.hf` was imported.

    `tokenizer` is what `Corpus.tokenizer` holds: `bytes`, or the path of a tokenizer.json. The result and the record go
    into the model card. The folder appears whole or not at all. Raises FileExistsError if it exists and is not empty,
    ValueError if the candidate's digest is not the model's, ImportError without transformers.
    """
    from nfsearch.hf import NFSearchConfig, NFSearchForCausalLM

    folder, architecture = Path(folder), model.architecture
    require_free(folder)
    if record is not None and record.digest != architecture.digest:
        raise ValueError(f"candidate {record.number} is {record.digest}, but the model given is {architecture.digest}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        scratch.mkdir()
        end = _write_tokenizer(tokenizer, scratch) if tokenizer else None
        config = NFSearchConfig(**architecture.to_dict())
        config.eos_token_id = config.pad_token_id = end
        config.architectures = [NFSearchForCausalLM.__name__]
        with _no_progress_bar():
            NFSearchForCausalLM(config, model).save_pretrained(scratch)
        (scratch / "README.md").write_text(_card(architecture, folder.name, result, record), encoding="utf-8")
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
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


def _card(architecture: Architecture, name: str, result: RunResult | None, record: CandidateRecord | None) -> str:
    """The model card."""
    extras = "hf,fla-layers" if any(layer.op.startswith("fla:") for layer in architecture.layers) else "hf"
    lines = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [nfsearch, hybrid]\n---",
        f"# {name}",
        "A hybrid language model found by architecture search with nfsearch. It was trained only as long as the search "
        "trains a candidate: good for checking the model, not for use.",
        f"    {architecture}",
        f"```python\nimport nfsearch.hf  # registers the classes: pip install 'nfsearch[{extras}]'\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{name}")\n```',
        "Sequences in a batch must have equal lengths: recurrent layers cannot skip padding.",
    ]
    rows = {"parameters": f"{architecture.parameters:,}", "digest": architecture.digest}
    if record is not None:
        rows |= {"candidate": str(record.number), "origin": record.origin}
        if record.loss is not None:
            rows |= {"loss (nats per token)": f"{record.loss:.4f}", "bits per byte": f"{record.bits_per_byte:.4f}"}
        rows |= {"trained on": str(record.data), "training": str(record.fidelity)}
        for workload, latency in record.latency.items():
            rows[f"{workload} (estimated)"] = f"{latency.seconds * 1e3:.3g} ms ± {latency.error_seconds * 1e3:.2g} ms"
    if result is not None:
        rows |= {"device": result.run.device, "command": f"`{result.run.command}`"}
    rows |= {"versions": ", ".join(f"{library} {version}" for library, version in versions().items())}
    cells = ["| {} | {} |".format(key, value.replace("\n", " ").replace("|", "\\|")) for key, value in rows.items()]
    return "\n\n".join([*lines, "\n".join(["| | |", "|---|---|", *cells])]) + "\n"
