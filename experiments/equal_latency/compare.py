"""How wide may a 24-operator model of each kind be in the time the searched design takes, and how large is it then?

Latency and parameters are taken to be linear in the width between two measured widths; nothing is said beyond them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from nfsearch.latency_lut import LatencyTable, load_table
from nfsearch.latency_lut.bundled import bundled_table
from nfsearch.run.config import Config, load_config
from nfsearch.space import Architecture

WORKLOAD = "decode_8k"
SEARCHED, SEARCHED_WIDTH = "searched", 2048  # the budget is this design's time at its published width
# layers; parameters in millions and seconds on an A100 in the paper's table of equal latency
KINDS = {
    "SWA 512": ("(A[window=512] F){12}", 616, 18.01),
    "GLA": ("(GLA F){12}", 862, 18.19),
    "DeltaNet": ("(D F){12}", 852, 18.18),
    "Gated DeltaNet": ("(GDN F){12}", 672, 17.91),
    "Mamba2": ("M2{24}", 601, 17.82),
    "Mamba2 + FFN": ("(M2 F){12}", 889, 17.73),
    SEARCHED: ("(D F M2 F A F M2 F){2} (D F M2 F){2}", 837, 17.71),
}


@dataclass(frozen=True)
class Point:
    """A model of one kind at one width."""

    width: float
    seconds: float
    parameters: float


def points(config: Config, table: LatencyTable, layers: str) -> list[Point]:
    """At each width of the space, narrow to wide."""
    space, workload = config.space.build(131072), config.latency.workloads[WORKLOAD]
    sizes = (Architecture.parse(layers, width=w, vocab=space.vocab, head_norm=space.head_norm) for w in space.widths)
    return [Point(size.width, table.estimate(size, workload).seconds, size.parameters) for size in sizes]


def at_budget(found: list[Point], budget: float) -> Point | None:
    """Where the time equals the budget; None where that is narrower or wider than what was measured."""
    for a, b in pairwise(found):
        if a.seconds <= budget <= b.seconds:
            place = (budget - a.seconds) / (b.seconds - a.seconds)
            return Point(
                a.width + place * (b.width - a.width), budget, a.parameters + place * (b.parameters - a.parameters)
            )
    return None


def report(config: Config, table: LatencyTable) -> str:
    """The table in Markdown."""
    every = {kind: points(config, table, layers) for kind, (layers, *_) in KINDS.items()}
    budget = next(point.seconds for point in every[SEARCHED] if point.width == SEARCHED_WIDTH)
    lines = [
        f"8192 tokens, batch 1, {budget:.2f} s on {table.provenance.device_name} ({table.provenance.date[:10]}); "
        "A100: the paper's, at 17.7 to 18.2 s.",
        "",
        "| 24 operators | width | parameters (M) | of the searched design's | s at width 2048 | A100: parameters (M) "
        "| of the searched design's |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    largest = at_budget(every[SEARCHED], budget)
    assert largest is not None
    for kind, (_, millions, _) in KINDS.items():
        point = at_budget(every[kind], budget)
        own = next(each.seconds for each in every[kind] if each.width == SEARCHED_WIDTH)
        if point is None:
            end, word = (every[kind][0], "<") if every[kind][0].seconds > budget else (every[kind][-1], ">")
            size, share = f"{word} {end.width:.0f} | {word} {end.parameters / 1e6:.0f}", "–"
        else:
            size = f"{point.width:.0f} | {point.parameters / 1e6:.0f}"
            share = f"{point.parameters / largest.parameters:.0%}"
        lines.append(f"| {kind} | {size} | {share} | {own:.2f} | {millions} | {millions / KINDS[SEARCHED][1]:.0%} |")
    return "\n".join(lines)


if __name__ == "__main__":
    config, _ = load_config(Path(__file__).with_name("config.yaml"))
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else bundled_table(config.latency.device)
    print(report(config, load_table(path)))
