"""A fidelity study of a few architectures that train for a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.nfsearch.runs import tiny_config

SPACE = {
    "width": {"fit": "latency", "from": [32, 64]},
    "where": {"mixer": "A[head_dim=16] | D[head_dim=16] | M2[head_dim=16,state=16]"},
    "layers": "(mixer F[ratio=2]{0..1}){1..3}",
}
STUDY: dict[str, Any] = {
    "architectures": 3,
    "within": 0.5,
    "more_seeds": {"architectures": 1, "seeds": 2},
    "recipes": {
        "default": {"budgets": [512, 1024]},
        "eager": {"budgets": [512], "optimizer": "adamw", "schedule": "cosine"},
        "twin": {"budgets": [512], "narrow": 2},
    },
    "reference": {"recipe": "default", "tokens": 2048},
}


def study_config(folder: Path, **changes: Any) -> Path:
    """`changes` are fields of the section `study:`."""
    proxy = {"tokens": 1024, "warmup": 0.1}
    return tiny_config(folder, space=SPACE, proxy=proxy, limits={"tpot_ms": 4.0}, study={**STUDY, **changes})
