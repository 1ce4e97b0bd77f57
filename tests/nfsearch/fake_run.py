"""A made-up search of 40 evaluations: plausible numbers, no training."""

from __future__ import annotations

import math
import random
from datetime import datetime, timezone

from nfsearch.latency_lut.verification import Verification
from nfsearch.proxies import Score
from nfsearch.report.result import (
    ConfigRecord,
    Run,
    RunResult,
    SpaceRecord,
    TableRecord,
    build_result,
)
from nfsearch.search.candidate import Candidate, Proposal
from nfsearch.space import Architecture
from nfsearch.support.versions import versions

MIXERS = ["A", "A[window=512]", "D", "GDN", "GLA", "M2"]
# seconds of one token at width 1, and what a layer takes off the loss: attention is dear and good
PRICE = {"A": 6e-8, "A[window=512]": 4e-8, "D": 3.2e-8, "GDN": 3.8e-8, "GLA": 2.8e-8, "M2": 3.5e-8, "F": 1.5e-8}
WORTH = {"A": 1.1, "A[window=512]": 0.9, "D": 1.0, "GDN": 1.1, "GLA": 0.7, "M2": 0.95, "F": 0.6}

CONFIG = """\
space:
  width: [256, 384, 512]
  where: {mixer: "A | A[window=512] | D | GDN | GLA | M2"}
  layers: "(mixer F){2..6}"
limits: {tpot_ms: 0.6}
"""


def _score(loss: float, rng: random.Random) -> Score:
    curve = tuple((t * 100_000, loss + 2.4 * math.exp(-t / 5) + rng.gauss(0, 0.01)) for t in range(1, 21))
    return Score(
        loss=loss,
        bits_per_byte=loss / math.log(2),
        perplexity=math.exp(loss),
        tokens=2_000_000,
        seconds=6.0,
        curve=curve,
        seed=0,
        data="python-stdlib/bytes",
        fidelity="2000000 tokens, sequence 512",
    )


def fake_candidates(n: int = 40, seed: int = 0, workloads: tuple[str, ...] = ("tpot",)) -> list[Candidate]:
    rng = random.Random(seed)
    found: list[Candidate] = []
    genes: list[tuple[list[str], int]] = []
    for number in range(n):
        done = [c.number for c in found if c.state == "done"]
        if number < 12 or not done:
            mixers, width = [rng.choice(MIXERS) for _ in range(rng.randint(2, 6))], rng.choice([256, 384, 512])
            origin, parents = ("known" if number < 2 else "random"), ()
        else:
            parent = min(rng.sample(done, min(5, len(done))), key=lambda k: found[k].values["loss"])
            mixers, width = list(genes[parent][0]), genes[parent][1]
            kind = rng.choice(["operator", "operator", "depth", "width"])
            if kind == "operator":
                mixers[rng.randrange(len(mixers))] = rng.choice(MIXERS)
            elif kind == "depth":
                mixers = mixers[:-1] if len(mixers) > 4 else [*mixers, rng.choice(MIXERS)]
            else:
                width = rng.choice([256, 384, 512])
            crossed = rng.random() < 0.2
            origin = "crossover" if crossed else f"mutation:{kind}"
            parents = (parent, rng.choice(done)) if crossed else (parent,)
        genes.append((mixers, width))
        layers = " ".join(f"{mixer} F" for mixer in mixers)
        price = sum(PRICE[word] for word in layers.split()) * width
        latency = {
            name: (price * scale, price * scale * 0.04)
            for name, scale in zip(workloads, (1.0, 60.0, 5.0), strict=False)
        }
        worth = sum(WORTH[word] for word in layers.split()) * (width / 256) ** 0.7 + 0.5 * len(set(mixers))
        loss = 1.15 + 3.2 * worth**-0.6 + rng.gauss(0, 0.015)
        proposal = Proposal(
            index=number,
            architecture=Architecture.parse(layers, width=width, vocab=256, meta_tokens=8),
            answers={},
            origin=origin,
            generation=0 if number < 12 else 1 + (number - 12) // 10,
            parents=parents,
            costs=latency,
        )
        failed = number in (9, 27)
        values = {"loss": loss, **{name: seconds for name, (seconds, _) in latency.items()}}
        found.append(
            Candidate(
                number=number,
                proposal=proposal,
                state="failed" if failed else "done",
                score=None if failed else _score(loss, rng),
                values={} if failed else values,
                seconds=6.0 + rng.random(),
                error="loss became NaN after 412 steps" if failed else None,
                attempts=2 if failed else 1,
            )
        )
    return found


def fake_verification(n: int = 12) -> Verification:
    rng = random.Random(1)
    checks = []
    for i in range(n):
        measured = rng.uniform(0.1, 0.8)
        estimated = measured * (1 + rng.gauss(-0.02, 0.05))
        check = {"workload": "tpot", "architecture": "(D F){2} A F @ 256", "digest": f"{i:016x}", "depth": 6}
        check |= {"estimated_ms": estimated, "error_ms": estimated / 25, "measured_ms": measured, "spread_ms": 0.01}
        check |= {"estimated_gb": 0.1, "measured_gb": None}
        checks.append(check)
    agreement = {"models": n, "mape": 0.043, "bias": -0.02, "worst": 0.11, "spearman": 0.97, "kendall": 0.88}
    return Verification.model_validate(
        {
            "device": "cpu",
            "dtype": "float32",
            "seed": 0,
            "table": "2026-03-01T09:00:00+00:00",
            "agreement": {"tpot": agreement},
            "by_depth": {"tpot": {"6 operators": agreement}},
            "memory": {"tpot": agreement},
            "checks": checks,
        }
    )


def make_result(
    candidates: list[Candidate] | None = None,
    *,
    workloads: tuple[str, ...] = ("tpot",),
    verified: bool = True,
    status: str = "complete",
) -> RunResult:
    return build_result(
        fake_candidates(workloads=workloads) if candidates is None else candidates,
        run=Run(
            status=status,  # type: ignore[arg-type]
            started=datetime(2026, 3, 1, 9, 30, tzinfo=timezone.utc),
            seconds=228.4,
            device="CPU: 2 cores, x86-64",
            command="nfsearch run experiments/quickstart/config.yaml",
            versions=versions(),
        ),
        config=ConfigRecord(text=CONFIG, resolved={"limits": {"tpot_ms": 0.6}}),
        space=SpaceRecord(
            notation="(mixer F){2..6}",
            where={"mixer": "A | A[window=512] | D | GDN | GLA | M2"},
            count=3 * sum(6**k for k in range(2, 7)),
            widths=[256, 384, 512],
            limits={"layers": 12},
        ),
        objectives=["loss", *workloads],
        storage="study.journal",
        refusals={"over the latency budget": 31, "seen before": 4},
        table=TableRecord(
            path="latency.parquet",
            rows=96,
            provenance={"device": "CPU: 2 cores, x86-64", "dtype": "float32", "torch": "2.13.0"},
            verification=fake_verification() if verified else None,
        ),
    )
