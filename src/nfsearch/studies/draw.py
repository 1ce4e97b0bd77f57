"""Architectures of one latency, spread over depths and operators."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nfsearch.search import Budgets
from nfsearch.space import Architecture, SearchSpace

ARCHITECTURES = "architectures.json"  # in a study's folder
_POOL = 20  # architectures that keep the latency, for each one that is taken
_TRIES = 500  # random members looked at, for each one that is taken
_GOLDEN = 0.6180339887498949


@dataclass(frozen=True)
class Drawn:
    """An architecture of a study and its latencies by the table, in seconds by the name of the workload."""

    architecture: Architecture
    latencies: Mapping[str, float]


def draw(
    space: SearchSpace,
    budgets: Budgets,
    timed: Collection[str],
    *,
    number: int,
    within: float,
    depths: tuple[int, int] | None,
    seed: int,
) -> list[Architecture]:
    """Different random members of the space that keep all limits, and whose latency is at most a share `within` below
    its limit; `timed` names the latencies among the limits, of which one has to be that near.

    One of each depth is taken in turn, one that has the operator which fewest of those taken before have. They come in
    an order of which every beginning is spread over the depths. Raises ValueError where there are not so many."""
    rng = random.Random(seed)
    pool: dict[str, Architecture] = {}
    fewest, most = depths or (1, max(space.count_by_depth()))
    for _ in range(_TRIES * number):
        architecture = space.sample(rng, budgets.fit).architecture
        if fewest <= len(architecture.layers) <= most and _near(architecture, budgets, timed, within):
            pool.setdefault(architecture.digest, architecture)
            if len(pool) == _POOL * number:
                break
    if len(pool) < number:
        raise ValueError(
            f"of {_TRIES * number:,} random members of the space {len(pool)} lie within {within:.0%} below the latency "
            f"limit and have {fewest} to {most} operators: the study asks for {number}"
        )
    return _in_order(_spread(list(pool.values()), number))


def _near(architecture: Architecture, budgets: Budgets, timed: Collection[str], within: float) -> bool:
    """Whether it keeps the limits, and comes near that of a latency."""
    found = budgets.estimate(architecture)
    near = any(found[name].value >= (1 - within) * budgets.limits.most[name] for name in timed)
    return near and not budgets.limits.excess(found)


def _spread(pool: Sequence[Architecture], number: int) -> list[Architecture]:
    by_depth: dict[int, list[Architecture]] = defaultdict(list)
    for architecture in pool:
        by_depth[len(architecture.layers)].append(architecture)
    chosen: list[Architecture] = []
    having: Counter[str] = Counter()  # how many of those chosen have an operator
    while len(chosen) < number:
        for depth in _outside_in(sorted(by_depth)):
            if by_depth[depth] and len(chosen) < number:
                # The first in the pool, whose order is random, that has the rarest operator that any has.
                best = min(by_depth[depth], key=lambda each: min(having[name] for name in operators(each)))
                by_depth[depth].remove(best)
                chosen.append(best)
                having.update(set(operators(best)))
    return chosen


def operators(architecture: Architecture) -> Counter[str]:
    """How many layers of each operator it has."""
    return Counter(layer.op for layer in architecture.layers)


def _outside_in(depths: list[int]) -> list[int]:
    """The ends first: they are there however few are taken."""
    return [depths[i // 2] if i % 2 == 0 else depths[-1 - i // 2] for i in range(len(depths))]


def _in_order(chosen: list[Architecture]) -> list[Architecture]:
    """By a sequence that fills the range of depths evenly, however many are taken of it."""
    ranked = sorted(chosen, key=lambda each: (len(each.layers), each.digest))
    places = sorted(range(len(ranked)), key=lambda turn: (turn * _GOLDEN) % 1)
    turns = {turn: place for place, turn in enumerate(places)}
    return [ranked[turns[turn]] for turn in range(len(ranked))]


def read_architectures(folder: Path) -> list[Drawn]:
    """Those of a study. Raises ValueError where the file is damaged."""
    path = folder / ARCHITECTURES
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [
            Drawn(Architecture.from_dict({k: v for k, v in each.items() if k != "latencies"}), each["latencies"])
            for each in listed
        ]
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no study: it has no {ARCHITECTURES}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
