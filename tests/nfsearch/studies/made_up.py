"""The folder of a study whose losses are made up, so that the answers are known."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

from nfsearch.proxies import Evaluation, Fidelity
from nfsearch.space import Architecture
from nfsearch.studies.draw import ARCHITECTURES
from nfsearch.studies.journal import Entry
from nfsearch.support.metrics import Measurement
from tests.nfsearch.studies.tiny import study_config

MIXERS = ("A", "D", "M2", "GLA", "GDN")
Loss = Callable[[int, Architecture, int, int], float]  # of number, architecture, tokens and seed


def architectures(number: int) -> list[Architecture]:
    """Of 4 to 24 layers, mixers in turn, every third without FFN."""
    rng = random.Random(0)
    found = []
    for i in range(number):
        depth, mixer = 4 + 20 * i // (number - 1), MIXERS[i % len(MIXERS)]
        blocks = f"{mixer}{{{depth}}}" if i % 3 == 0 else f"({mixer} F){{{depth // 2}}}"
        found.append(Architecture.parse(blocks, width=rng.choice([256, 512, 1024]), vocab=257))
    return found


def made_up_study(folder: Path, number: int, losses: dict[str, Loss], more_seeds: int = 0) -> Path:
    """`losses` are the recipes, at 1M, 2M and 4M tokens; the first is the reference too, at 16M."""
    folder.mkdir(exist_ok=True)
    reference = next(iter(losses))
    recipes = {name: {"budgets": [1_000_000, 2_000_000, 4_000_000]} for name in losses}
    study_config(folder, recipes=recipes, reference={"recipe": reference, "tokens": 16_000_000})
    designs = architectures(number)
    listed = [{**each.to_dict(), "latencies": {"tpot": 1e-3}} for each in designs]
    (folder / ARCHITECTURES).write_text(json.dumps(listed))
    lines = [
        entry(design, name, tokens, seed, loss(i, design, tokens, seed)).to_line()
        for i, design in enumerate(designs)
        for seed in range(3 if i < more_seeds else 1)
        for name, loss in losses.items()
        for tokens in [1_000_000, 2_000_000, 4_000_000, *([16_000_000] if name == reference else [])]
    ]
    (folder / "share-1-of-1.journal").write_text("".join(f"{line}\n" for line in lines))
    return folder


def entry(design: Architecture, recipe: str, tokens: int, seed: int, loss: float) -> Entry:
    fidelity = Fidelity(tokens, 32, 8, recipe, "data")
    curve = tuple((tokens * step // 10, loss + 1 / step) for step in range(1, 11))
    found = Evaluation({"loss": Measurement(loss)}, tokens, 1.0, curve) if loss == loss else None
    error = None if found else "the training loss is nan at step 3"
    return Entry(design.digest, recipe, tokens, seed, fidelity, "made-up", found, tokens / 1e6, error)
