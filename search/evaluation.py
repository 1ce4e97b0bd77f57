"""The evaluator of a search: a short training run in a worker process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nfsearch.proxies import ProxySettings
from nfsearch.search.worker import Evaluator, Report
from nfsearch.space import Architecture


def make_evaluator(corpus: Any, settings: ProxySettings, device: str) -> Evaluator:
    """Trains on `corpus` (a `proxies.data.Corpus`) on `device`. Called once in each worker; imports torch there."""
    from nfsearch.proxies.training import train

    def evaluate(architecture: Mapping[str, Any], seed: int, report: Report) -> Mapping[str, Any]:
        candidate = Architecture.from_dict(architecture)
        return train(candidate, corpus, settings, seed=seed, device=device, report=report).to_dict()

    return evaluate
