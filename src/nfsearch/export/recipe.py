"""A candidate as an architecture with a training recipe, in YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nfsearch.export.choose import require_free_file
from nfsearch.export.exporter import Winner
from nfsearch.space import Architecture
from nfsearch.support.files import write_atomically

FORMAT = "nfsearch.architecture/1"

_HEADER = """\
# A candidate of an architecture search. `architecture` is the model; nfsearch.export.load_architecture reads it.
# `training` is how Nemotron-Flash trained its models of 1B and 3B parameters (arXiv 2511.18890): set tokens and batch
# for yours, and a rate that fits them. What the paper leaves open is marked.
# `proxy` is the short run that the search scored it with, and `measured` is what that run gave.
"""


class YamlExporter:
    """The architecture, a training recipe, and where both come from, in one file."""

    def export(self, winner: Winner, out: Path) -> Path:
        require_free_file(out)
        fields = recipe(winner)
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, _HEADER + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110))
        return out


def recipe(winner: Winner) -> dict[str, Any]:
    """All that a YAML export holds."""
    record, proxy = winner.record, winner.settings
    return {
        "format": FORMAT,
        "architecture": record.architecture,
        "parameters": winner.architecture.parameters,
        "digest": record.digest,
        "training": _recipe(proxy),
        "proxy": proxy,
        "measured": _measured(winner),
        "provenance": _provenance(winner),
    }


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


def _measured(winner: Winner) -> dict[str, Any]:
    """What the search measured, in the units that are shown."""
    record = winner.record
    found = {}
    for metric in winner.result.metrics:
        if (measured := record.metrics.get(metric.name)) is not None:
            value = {"value": measured.value * metric.unit.scale, "unit": metric.unit.shown}
            error = {"error": measured.error * metric.unit.scale} if measured.error else {}
            found[metric.name] = {**value, **error}
    fidelity = record.fidelity.to_dict()
    return {"metrics": found, "tokens": record.tokens, "seed": record.seed, "fidelity": fidelity}


def _provenance(winner: Winner) -> dict[str, Any]:
    result, record = winner.result, winner.record
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
