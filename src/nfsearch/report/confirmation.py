"""Finalists trained again with other seeds: their means, how sure those are, and which order holds.

A search picks whoever did well with one seed, so the losses that it picked by flatter the winners. Those evaluations
are left out here: all figures are of the other seeds.

One standard deviation s is pooled from all finalists, as if the seed moved the losses of all of them alike; it has
v = (evaluations - finalists) degrees of freedom. The error bar of a mean of n seeds is the 95 % interval
t(0.975, v) s / sqrt(n), and A is better than B with the probability that Student's t with v degrees of freedom gives to

    (mean of B - mean of A) / (s sqrt(1 / n_A + 1 / n_B))

"Seed" means initial weights and order of the data; what other data would have said is in no error bar.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, pairwise

from pydantic import BaseModel, ConfigDict, Field

from nfsearch.proxies import Fidelity
from nfsearch.search.budgets import Limits
from nfsearch.search.candidate import Candidate, State
from nfsearch.search.pareto import dominates, front
from nfsearch.support.metrics import Measurement, Measurements

TOLD_APART = 0.95  # the probability from which one of two is called the better one


class Part(BaseModel):
    """A part of `result.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SeedRun(Part):
    """A finalist evaluated once more."""

    trial: int = Field(description="its number in the study")
    seed: int
    job: str = Field(description="names the evaluation")
    state: State
    metrics: dict[str, float] = Field(description="what the evaluation measured; empty if it failed")
    seconds: float
    error: str | None


class Finalist(Part):
    """A candidate that was evaluated again."""

    number: int = Field(description="of the candidate")
    metrics: dict[str, Measurement] = Field(
        description="means over the seeds with 95 % error bars (0: one seed each, so not known); costs are the "
        "candidate's own"
    )
    runs: list[SeedRun] = Field(description="by seed; failed ones are in no mean")

    @property
    def seeds(self) -> int:
        """How many evaluations its means are of."""
        return sum(run.state == "done" for run in self.runs)


class Pair(Part):
    """Two finalists, the one with the lower mean first."""

    better: int
    other: int
    probability: float = Field(description="that the first one is better, given their means and the seeds' spread")


class Confirmed(Part):
    """Finalists compared at one fidelity, over several seeds."""

    fidelity: Fidelity
    metric: str = Field(description="the first objective that an evaluation measures; it decides who is better")
    spread: float | None = Field(description="standard deviation of the metric over seeds, pooled; null: one seed each")
    freedom: int = Field(description="degrees of freedom of the spread")
    finalists: list[Finalist] = Field(description="by the metric, best first; those of which some seed finished")
    front: list[int] = Field(description="numbers of the finalists that no other dominates, by the first objective")
    pairs: list[Pair] = Field(description="every two finalists; empty: one seed each")

    def finalist(self, number: int) -> Finalist | None:
        """None if the candidate is no finalist."""
        return next((each for each in self.finalists if each.number == number), None)

    @property
    def placed(self) -> list[Finalist]:
        """The front by the first objective, then the others."""
        return sorted(
            self.finalists,
            key=lambda each: self.front.index(each.number) if each.number in self.front else len(self.front),
        )

    def probability(self, first: int, second: int) -> float | None:
        """That the first is better than the second; None where that is not known."""
        for pair in self.pairs:
            if (pair.better, pair.other) == (first, second):
                return pair.probability
            if (pair.better, pair.other) == (second, first):
                return 1 - pair.probability
        return None

    def order(self) -> str:
        """The order that holds, as a sentence: "3 is better than 7 with probability 0.97; ..."."""
        if len(self.finalists) < 2:
            return "There is one finalist only."
        if not self.pairs:
            return "One other seed each says nothing of the order; two (--seeds 2) would."
        parts = []
        for one, other in pairwise(self.finalists):
            p = self.probability(one.number, other.number) or 0.0
            if round(p, 2) >= TOLD_APART:  # as it is shown
                parts.append(f"{one.number} is better than {other.number} with probability {_probability(p)}")
            else:
                parts.append(f"{one.number} and {other.number} cannot be told apart ({_probability(p)})")
        return "; ".join(parts) + "."

    def fallen(self, objectives: Sequence[str], before: Collection[int]) -> list[str]:
        """A sentence about each finalist of the search's front `before` that another one dominates."""

        def point(metrics: Measurements) -> tuple[float, ...]:
            return tuple(metrics[name].value for name in objectives)

        lines = []
        for loser in self.finalists:
            for winner in map(self.finalist, self.front):
                if loser.number in self.front or loser.number not in before or winner is None:
                    continue
                if dominates(point(winner.metrics), point(loser.metrics)):
                    p = self.probability(winner.number, loser.number)
                    words = "" if p is None else f" (in {self.metric} with probability {_probability(p)})"
                    lines.append(
                        f"{loser.number} leaves the front: {winner.number} is as good or better in everything{words}."
                    )
                    break
        return lines


def best(found: Mapping[int, Measurements], objectives: Sequence[str]) -> list[int]:
    """The numbers of those that no other dominates, by the first objective."""
    numbers = list(found)
    on = front([[found[number][name].value for name in objectives] for number in numbers])
    chosen = [number for number, there in zip(numbers, on, strict=True) if there]
    return sorted(chosen, key=lambda number: (found[number][objectives[0]].value, number))


def confirmed_of(
    evaluations: Sequence[Candidate],
    costs: Mapping[int, Measurements],
    objectives: Sequence[str],
    limits: Limits,
) -> list[Confirmed]:
    """What further evaluations of candidates come to, the most expensive fidelity first, but those that cannot tell who
    is better (of one finalist, or one seed each, as where they were interrupted) last; `costs` are the metrics of the
    candidates by number, of which those that no evaluation measures are taken. Fidelities that have no objective
    measured, or no evaluation that finished, are left out."""
    by_fidelity: dict[Fidelity, list[Candidate]] = {}
    for each in evaluations:
        by_fidelity.setdefault(each.fidelity, []).append(each)
    found = (
        _confirmed(fidelity, group, costs, objectives, limits)
        for fidelity, group in sorted(by_fidelity.items(), key=lambda item: item[0], reverse=True)
    )
    return sorted((each for each in found if each is not None), key=lambda each: not each.pairs)


def _confirmed(
    fidelity: Fidelity,
    evaluations: Sequence[Candidate],
    costs: Mapping[int, Measurements],
    objectives: Sequence[str],
    limits: Limits,
) -> Confirmed | None:
    by_seed: dict[int, dict[int, SeedRun]] = {}
    for each in sorted(evaluations, key=lambda each: (each.proposal.job.seed, each.number)):
        if each.proposal.confirms is not None:  # the last word on a seed: one that failed may have been tried again
            by_seed.setdefault(each.proposal.confirms, {})[each.proposal.job.seed] = _run(each)
    runs = {number: list(group.values()) for number, group in by_seed.items()}
    done = {number: [run for run in group if run.state == "done"] for number, group in runs.items()}
    done = {number: group for number, group in done.items() if group}
    measured = set.intersection(*(set(run.metrics) for group in done.values() for run in group)) if done else set()
    metric = next((name for name in objectives if name in measured), None)
    if metric is None:
        return None
    means = {name: _means({n: [run.metrics[name] for run in group] for n, group in done.items()}) for name in measured}
    metrics = {number: {**costs[number], **{name: means[name][0][number] for name in measured}} for number in done}
    _, spread, freedom = means[metric]
    able = {number: found for number, found in metrics.items() if not limits.excess(found)}
    finalists = [Finalist(number=number, metrics=metrics[number], runs=runs[number]) for number in done]
    finalists.sort(key=lambda each: (each.metrics[metric].value, each.number))
    return Confirmed(
        fidelity=fidelity,
        metric=metric,
        spread=spread,
        freedom=freedom,
        finalists=finalists,
        front=best(able, objectives),
        pairs=_pairs(finalists, metric, spread, freedom),
    )


def _run(evaluated: Candidate) -> SeedRun:
    job, found = evaluated.proposal.job, evaluated.evaluation
    return SeedRun(
        trial=evaluated.number,
        seed=job.seed,
        job=job.digest,
        state=evaluated.state,
        metrics={name: each.value for name, each in found.metrics.items()} if found else {},
        seconds=evaluated.seconds,
        error=evaluated.error,
    )


def _means(values: Mapping[int, Sequence[float]]) -> tuple[dict[int, Measurement], float | None, int]:
    """Means of groups with 95 % error bars, the pooled standard deviation (None: one value each), and its degrees of
    freedom."""
    from scipy.special import stdtrit

    means = {number: math.fsum(group) / len(group) for number, group in values.items()}
    freedom = sum(len(group) - 1 for group in values.values())
    if not freedom:
        return {number: Measurement(mean) for number, mean in means.items()}, None, 0
    squares = math.fsum((value - means[number]) ** 2 for number, group in values.items() for value in group)
    spread = math.sqrt(squares / freedom)
    bar = float(stdtrit(freedom, 0.975)) * spread
    found = {number: Measurement(means[number], bar / math.sqrt(len(group))) for number, group in values.items()}
    return found, spread, freedom


def _pairs(finalists: Sequence[Finalist], metric: str, spread: float | None, freedom: int) -> list[Pair]:
    from scipy.special import stdtr

    pairs: list[Pair] = []
    for one, other in combinations(finalists, 2) if spread is not None else ():
        gap = other.metrics[metric].value - one.metrics[metric].value
        error = (spread or 0.0) * math.sqrt(1 / one.seeds + 1 / other.seeds)
        p = float(stdtr(freedom, gap / error)) if error else (1.0 if gap else 0.5)
        pairs.append(Pair(better=one.number, other=other.number, probability=p))
    return pairs


def _probability(p: float) -> str:
    return ">0.99" if p > 0.995 else f"{p:.2f}"
