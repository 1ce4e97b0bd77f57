"""A small space, latencies that can be computed by hand, and evaluators that train nothing.

The evaluators are nested functions, which travel to the workers by value: the workers cannot import the tests.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nfsearch.proxies import Score
from nfsearch.search import STRATEGIES, Budgets, Candidate, Proposal, SearchSettings, Strategy, WorkerSettings
from nfsearch.search.engine import Engine
from nfsearch.search.study import open_store
from nfsearch.search.worker import EvaluatorFactory
from nfsearch.space import Architecture, SearchSpace, SpaceSettings

OBJECTIVES = ("loss", "tpot")


def small_space(**changes: Any) -> SearchSpace:
    fields = {"width": (128, 256), "layers": "(mixer F{0..2}){1..3} mixer{1..2}", "where": {"mixer": "D | M2 | A"}}
    return SpaceSettings.model_validate({**fields, **changes}).build(vocab=256)


def latency(architecture: Architecture) -> dict[str, tuple[float, float]]:
    """Half a microsecond for each layer and unit of width."""
    return {"tpot": (len(architecture.layers) * architecture.width * 5e-7, 1e-6)}


def strategy(
    name: str = "aging", space: SearchSpace | None = None, budget: float | None = None, **settings: Any
) -> Strategy:
    fields = {"strategy": name, "evaluations": 12, "population": 4, "tournament": 2, **settings}
    budgets = Budgets(latency, {} if budget is None else {"tpot": budget})
    return STRATEGIES[name](space or small_space(), SearchSettings.model_validate(fields), budgets)


def score(loss: float) -> Score:
    return Score(loss, loss, 2.0, 100, 0.1, ((50, loss + 1), (100, loss)), 0, "fake", "none")


def candidate(number: int, proposal: Proposal, loss: float | None) -> Candidate:
    """A finished one; failed if it has no loss."""
    if loss is None:
        return Candidate(number, proposal, "failed", None, {}, 1.5, "the loss is nan", 2)
    return Candidate(
        number, proposal, "done", score(loss), {"loss": loss, "tpot": proposal.costs["tpot"][0]}, 0.5, None, 1
    )


def search(strategy: Strategy, count: int, losses: Callable[[int], float | None] | None = None) -> list[Candidate]:
    """What one worker would find: the history after `count` proposals."""
    rng = random.Random(1)
    history: list[Candidate] = []
    for index in range(count):
        proposal = strategy.propose(index, history)
        history.append(candidate(index, proposal, losses(index) if losses else rng.random()))
    return history


def evaluator(log: Path | None = None, seconds: float = 0.0) -> EvaluatorFactory:
    """Losses that depend on the design alone. Writes a line for each evaluation that began."""

    def factory() -> Callable[..., Mapping[str, Any]]:
        import time
        import zlib

        def evaluate(
            architecture: Mapping[str, Any], seed: int, report: Callable[[int, float], None]
        ) -> dict[str, Any]:
            name = f"{architecture['layers']} @ {architecture['width']}"
            if log is not None:
                with log.open("a") as file:
                    file.write(name + "\n")
            loss = 1 + zlib.crc32(name.encode()) / 2**32
            report(50, loss + 1)
            time.sleep(seconds)
            return {
                "loss": loss, "bits_per_byte": loss, "perplexity": 2.0, "tokens": 100, "seconds": seconds,
                "curve": [[50, loss + 1], [100, loss]], "seed": seed, "data": "fake", "fidelity": "none",
            }  # fmt: skip

        return evaluate

    return factory


def engine(
    folder: Path,
    factory: EvaluatorFactory,
    *,
    count: int = 1,
    resume: bool = False,
    workers: Any = None,
    **settings: Any,
) -> Engine:
    chosen = strategy(**settings)
    folder.mkdir(exist_ok=True)
    store = open_store(
        folder / "study.journal",
        objectives=OBJECTIVES,
        fingerprint={"seed": chosen.settings.seed, "space": chosen.space.notation},
        resume=resume,
    )
    return Engine(chosen, store, factory, WorkerSettings(count=count, **(workers or {})))
