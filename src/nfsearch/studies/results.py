"""The results of a fidelity study as one table: a row for each architecture, recipe, budget and seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from nfsearch.proxies.zero_cost import flops_per_token
from nfsearch.studies.draw import Drawn, operators
from nfsearch.studies.journal import Entry, Known

LAYERS = "layers_"  # how the columns begin that count the layers of an operator


def results(drawn: Sequence[Drawn], known: Known) -> pd.DataFrame:
    """`number` counts the architectures; `state` is done, diverged, or failed (which is tried again), and a loss that
    diverged is infinite; `seconds` are those that the budget takes from the first token on; `training_loss` is the last
    of the curve, in nats as all losses; latencies are the table's."""
    names = sorted({name for each in drawn for name in operators(each.architecture)})
    rows = [
        {**about(number, each, names), **_outcome(entry)}
        for number, each in enumerate(drawn)
        for (digest, *_), entries in known.items()
        for entry in entries.values()
        if digest == each.architecture.digest
    ]
    return pd.DataFrame(rows)


def about(number: int, drawn: Drawn, names: Sequence[str]) -> dict[str, Any]:
    """What is known of an architecture before any training; `names` are the operators that have a column."""
    one = drawn.architecture
    counts = operators(one)
    return {
        "number": number,
        "architecture": one.digest,
        "notation": one.notation,
        "width": one.width,
        "depth": len(one.layers),
        "parameters": one.parameters,
        "non_embedding_parameters": one.non_embedding_parameters,
        "flops_per_token": flops_per_token(one, 0),  # without what attention does of a context
        **{f"{name}_ms": 1e3 * seconds for name, seconds in drawn.latencies.items()},
        **{f"{LAYERS}{name}": counts[name] for name in names},
    }


def _outcome(entry: Entry) -> dict[str, Any]:
    found = entry.evaluation
    curve = found.curve if found else ()
    return {
        "recipe": entry.recipe,
        "tokens": entry.tokens,
        "seed": entry.seed,
        "state": "done" if found else "diverged" if entry.final else "failed",
        "loss": found.metrics["loss"].value if found else np.inf if entry.final else np.nan,
        "training_loss": curve[-1][1] if curve else np.nan,
        "seconds": entry.seconds,
        "device": entry.device,
        "twin": entry.fidelity.twin,
        "sequence": entry.fidelity.sequence,
        "batch": entry.fidelity.batch,
        "settings": entry.fidelity.recipe,
        "data": entry.fidelity.data,
        "curve_tokens": [tokens for tokens, _ in curve],
        "curve_losses": [loss for _, loss in curve],
        "notes": "; ".join(found.notes) if found else "",
        "error": entry.error or "",
    }
