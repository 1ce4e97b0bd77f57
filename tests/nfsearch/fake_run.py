"""A made-up search of 40 evaluations: plausible numbers, no training."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone

from nfsearch.latency_lut import Workload
from nfsearch.latency_lut.verification import Check, Verification
from nfsearch.proxies import Evaluation, Fidelity, Job
from nfsearch.proxies.settings import BITS_PER_BYTE, LOSS, PERPLEXITY
from nfsearch.report.result import (
    ConfigRecord,
    Run,
    RunResult,
    SpaceRecord,
    TableRecord,
    Timings,
    build_result,
)
from nfsearch.run.config import read_limits
from nfsearch.run.metrics import known_metrics
from nfsearch.search.candidate import Candidate, Proposal
from nfsearch.space import Architecture
from nfsearch.support.metrics import Measurement
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


FIDELITY = Fidelity(2_000_000, 512, 32, "learning rate 0.001, fp32", "0123456789abcdef")
FAILED, STOPPED, NOTED = (9, 27), 21, (5, 30)  # numbers of candidates
NOTE = "D trains in plain torch: the kernel gave other gradients (0.3 off)"


def _evaluation(loss: float, rng: random.Random, notes: tuple[str, ...]) -> Evaluation:
    curve = tuple((t * 100_000, loss + 2.4 * math.exp(-t / 5) + rng.gauss(0, 0.01)) for t in range(1, 21))
    values = {"loss": loss, "bits_per_byte": loss / math.log(2), "perplexity": math.exp(loss)}
    metrics = {name: Measurement(value) for name, value in values.items()}
    return Evaluation(metrics, 2_000_000, 6.0, curve, notes, rungs=((1_000_000, loss + 0.3),))


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
            parent = min(rng.sample(done, min(5, len(done))), key=lambda k: found[k].value("loss"))
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
        architecture = Architecture.parse(layers, width=width, vocab=256, meta_tokens=8)
        costs = {
            name: Measurement(price * scale, price * scale * 0.04)
            for name, scale in zip(workloads, (1.0, 60.0, 5.0), strict=False)
        }
        costs["memory"] = Measurement(4.0 * architecture.parameters)
        costs["parameters"] = Measurement(float(architecture.parameters))
        costs["state"] = Measurement(1e3 * width * len(mixers))
        worth = sum(WORTH[word] for word in layers.split()) * (width / 256) ** 0.7 + 0.5 * len(set(mixers))
        loss = 1.15 + 3.2 * worth**-0.6 + rng.gauss(0, 0.015)
        proposal = Proposal(
            index=number,
            job=Job(architecture, FIDELITY),
            answers={},
            origin=origin,
            generation=0 if number < 12 else 1 + (number - 12) // 10,
            parents=parents,
            costs=costs,
            refused={"over the limit on tpot": 1} if number % 4 == 0 else {},
        )
        failed, evaluation = number in FAILED, _evaluation(loss, rng, (NOTE,) if number in NOTED else ())
        seconds = 6.0 + rng.random()
        if failed:
            error = "loss became NaN after 412 steps"
            found.append(Candidate(number, proposal, "failed", None, seconds, error, attempts=2))
        elif number == STOPPED:
            found.append(Candidate(number, proposal, "stopped", stopped(evaluation), seconds))
        else:
            found.append(Candidate(number, proposal, "done", evaluation, seconds))
    return found


def fake_confirmations(losses: Mapping[int, Sequence[float]]) -> list[Candidate]:
    """Candidates of `fake_candidates` evaluated again, with seeds from 1 on: the losses of each by its number."""
    candidates, found = fake_candidates(), []
    for number, values in losses.items():
        original = candidates[number].proposal
        for seed, loss in enumerate(values, start=1):
            proposal = replace(original, job=replace(original.job, seed=seed), confirms=number, origin="confirmation")
            evaluation = Evaluation({"loss": Measurement(loss)}, 2_000_000, 6.0)
            found.append(Candidate(len(candidates) + len(found), proposal, "done", evaluation, 6.0))
    return found


def fake_timings(factors: Mapping[int, float]) -> dict[str, dict[str, Check | None]]:
    """Candidates of `fake_candidates` timed as whole models: by number, how many times as long they take as was
    estimated; 0 for one that does not fit into memory."""
    found: dict[str, dict[str, Check | None]] = {}
    for number, factor in factors.items():
        proposal = fake_candidates()[number].proposal
        ms, architecture = 1e3 * proposal.costs["tpot"].value, proposal.architecture
        found[architecture.digest] = {
            "tpot": Check(
                workload="tpot",
                architecture=str(architecture),
                digest=architecture.digest,
                depth=len(architecture.layers),
                estimated_ms=ms,
                error_ms=ms / 25,
                measured_ms=factor * ms,
                spread_ms=factor * ms / 50,
                estimated_gb=0.1,
                measured_gb=None,
            )
            if factor
            else None
        }
    return found


def stopped(evaluation: Evaluation) -> Evaluation:
    """What is known of a candidate that was stopped in the middle."""
    return replace(evaluation, metrics={}, tokens=1_000_000, curve=evaluation.curve[:10])


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
    objectives: Sequence[str] | None = None,
    limits: Mapping[str, float] | None = None,
    timings: Timings | None = None,
    confirmations: Sequence[Candidate] = (),
) -> RunResult:
    """`limits` as in a config; `objectives` are the loss and all workloads, unless given."""
    metrics = known_metrics((LOSS, BITS_PER_BYTE, PERPLEXITY), dict.fromkeys(workloads, Workload()))
    if limits is None:
        limits = {"tpot_ms": 0.6} if "tpot" in workloads else {}
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
        config=ConfigRecord(text=CONFIG, resolved={"limits": dict(limits)}),
        space=SpaceRecord(
            notation="(mixer F){2..6}",
            where={"mixer": "A | A[window=512] | D | GDN | GLA | M2"},
            count=3 * sum(6**k for k in range(2, 7)),
            widths=[256, 384, 512],
            limits={"layers": 12},
        ),
        metrics=list(metrics.values()),
        objectives=objectives or ["loss", *workloads],
        limits=read_limits(limits, metrics),
        population=12,
        storage="study.journal",
        timings=timings,
        confirmations=confirmations,
        table=TableRecord(
            path="latency.parquet",
            rows=96,
            provenance={"device": "CPU: 2 cores, x86-64", "dtype": "float32", "torch": "2.13.0"},
            verification=fake_verification() if verified else None,
        ),
    )
