from __future__ import annotations

import math
import random

import pytest

from nfsearch.search import Exhausted, History
from nfsearch.search.known import fitting, locate
from nfsearch.search.strategies.aging import Aging
from nfsearch.space import Architecture, Member, SearchSpace, Unreachable
from nfsearch.space.search_space import Fits
from nfsearch.support.metrics import Measurement, Measurements
from nfsearch.testing.samples import candidate, latency, small_space
from tests.search.fakes import search, strategy


@pytest.mark.parametrize("name", ["aging", "random"])
def test_same_seed_same_search(name: str) -> None:
    one, two = (search(strategy(name), 20) for _ in range(2))
    assert [*one] == [*two]
    other = search(strategy(name, seed=1), 20)
    assert [c.proposal.architecture for c in one] != [c.proposal.architecture for c in other]


@pytest.mark.parametrize("name", ["aging", "random"])
def test_no_design_twice(name: str) -> None:
    digests = [c.proposal.architecture.digest for c in search(strategy(name), 80)]
    assert len(set(digests)) == 80


def test_running_designs_are_not_proposed() -> None:
    chosen = strategy()
    history = search(chosen, 6)
    first = chosen.propose(6, history)
    second = chosen.propose(6, history, running={first.job.digest})
    assert second.architecture != first.architecture
    assert second.refused["evaluated before"] >= 1


def test_population_is_the_last_that_succeeded() -> None:
    chosen = strategy()
    assert isinstance(chosen, Aging)
    history = search(chosen, 9, losses=lambda index: None if index in (4, 7) else index)
    assert [c.number for c in chosen.population(history)] == [3, 5, 6, 8]  # 0 to 2 are too old, 4 and 7 failed


def test_parents_come_from_the_population_only() -> None:
    chosen = strategy(crossover=0.5)
    assert isinstance(chosen, Aging)
    history = search(chosen, 60, losses=lambda index: None if index % 5 == 4 else 60 - index)
    bred = [c for c in history if c.proposal.parents]
    assert len(bred) > 40
    for child in bred:
        members = {c.number for c in chosen.population(History(history[: child.number]))}
        assert set(child.proposal.parents) <= members
    kinds = {c.proposal.origin.split(":")[0] for c in history}
    assert kinds == {"random", "mutation", "crossover"}
    assert [c.proposal.generation for c in history[:9]] == [0, 0, 0, 0, 1, 1, 1, 1, 2]


def test_parent_has_the_lowest_loss_of_the_drawn() -> None:
    chosen = strategy(population=6, tournament=6)
    assert isinstance(chosen, Aging)
    history = search(chosen, 6, losses=[3.0, 1.0, 2.0, 1.0, 5.0, 4.0].__getitem__)
    assert chosen.tournament(random.Random(0), history).number == 1  # all drawn; the older of two equal ones
    pair = strategy(population=6, tournament=2)
    assert isinstance(pair, Aging)
    for seed in range(50):
        drawn = random.Random(seed).sample(history, 2)
        best = min(drawn, key=lambda c: (c.value("loss"), c.number))
        assert pair.tournament(random.Random(seed), history) == best


def test_mutation_changes_one_parent_and_crossover_names_two() -> None:
    for share, parents in ((0.0, 1), (1.0, 2)):
        children = [c for c in search(strategy(crossover=share), 30) if c.proposal.origin != "random"]
        assert children
        assert {len(c.proposal.parents) for c in children} == {parents}


def test_nothing_over_the_budget_is_proposed() -> None:
    budget = 400e-6
    history = search(strategy(budget=budget), 40)
    assert all(c.proposal.costs["tpot"].value <= budget for c in history)
    assert sum(c.proposal.refused.get("over the limit on tpot", 0) for c in history) > 0


def test_memory_limit() -> None:
    limit = 400_000.0

    def costs(architecture: Architecture) -> Measurements:
        return {**latency(architecture), "memory": Measurement(float(architecture.parameters))}

    history = search(strategy(estimate=costs, limits={"memory": limit}), 20)
    assert all(c.proposal.architecture.parameters <= limit for c in history)
    assert sum(c.proposal.refused.get("over the limit on memory", 0) for c in history) > 0


def test_what_does_not_fit_into_memory_is_refused_without_any_limit() -> None:
    def tight(architecture: Architecture) -> Measurements:
        return {"tpot": Measurement(math.inf)} if architecture.width == 256 else latency(architecture)

    history = search(strategy(estimate=tight), 20)
    assert {c.proposal.architecture.width for c in history} == set(small_space().widths) - {256}
    assert sum(c.proposal.refused.get("over the limit on tpot", 0) for c in history) > 0


def test_any_metric_can_decide_a_tournament() -> None:
    chosen = strategy(population=6, tournament=6, objectives=("tpot", "loss"))
    assert isinstance(chosen, Aging)
    history = search(chosen, 6)
    assert chosen.tournament(random.Random(0), history).value("tpot") == min(c.value("tpot") for c in history)


def test_a_parent_within_the_limits_beats_a_better_one_beyond_them() -> None:
    chosen = strategy(population=6, tournament=6, objectives=("tpot",), limits={"loss": 2.5})
    assert isinstance(chosen, Aging)
    history = search(chosen, 6, losses=[3.0, 4.0, 3.5, 2.0, 5.0, 3.0].__getitem__)
    assert chosen.tournament(random.Random(0), history).number == 3  # the only one within
    beyond = [found for found in history if found.number != 3]
    assert chosen.tournament(random.Random(0), beyond).value("loss") == 3.0  # the least beyond


def test_after_a_success_a_budget_that_nothing_new_keeps_ends_the_search() -> None:
    history = search(strategy(budget=400e-6), 3)
    with pytest.raises(Exhausted, match="no new design"):
        strategy(budget=100e-6).propose(3, history)


def test_unreachable_budget_names_the_closest() -> None:
    with pytest.raises(ValueError, match=r"no member .* 2000 tried .*tpot.*the closest is .* @ 128 \(tpot: 0.128 ms"):
        strategy(budget=100e-6).propose(0, History())


@pytest.mark.parametrize("name", ["aging", "random"])
def test_samples_that_find_no_member_are_drawn_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = strategy(name)
    sample, drawn, every = SearchSpace.sample, [], 4

    def seldom(space: SearchSpace, rng: random.Random, fits: Fits | None = None) -> Member:
        drawn.append(rng)
        if len(drawn) % every:
            raise Unreachable("none found")
        return sample(space, rng, fits)

    monkeypatch.setattr(SearchSpace, "sample", seldom)
    assert chosen.propose(0, History()).refused == {"outside the space's limits": 3}
    every = 10**6
    with pytest.raises(Unreachable, match="none found"):
        chosen.propose(0, History())


@pytest.mark.parametrize("name", ["aging", "random"])
def test_small_space_is_exhausted(name: str) -> None:
    chosen = strategy(name, space=small_space(width=128, layers="(D|A|M2) F{0..2}", where={}))
    history = search(chosen, 9)
    assert len({c.proposal.architecture.digest for c in history}) == 9
    with pytest.raises(Exhausted, match="the space has 9 at most"):
        chosen.propose(9, history)


def test_known_designs_come_first() -> None:
    known = ["D F D F A", {"width": 128, "layers": "A A"}]
    history = search(strategy(seeds_known=known, budget=400e-6), 4)
    assert [str(c.proposal.architecture) for c in history[:2]] == [
        "D F D F A @ 128",
        "A A @ 128",
    ]  # widest within 0.4 ms
    assert [c.proposal.origin for c in history] == ["known", "known", "random", "random"]


def test_known_design_over_the_budget_is_left_out() -> None:
    chosen = strategy(budget=200e-6)
    assert isinstance(chosen, Aging)
    known, left_out = fitting(locate(chosen.space, ["D F D F A", "A A"]), chosen.budgets)
    assert [str(draft.architecture) for draft in known] == ["A A @ 128"]
    (text,) = left_out
    assert "left out (tpot: 0.32 ms against 0.2 ms)" in text


def test_known_design_outside_the_space() -> None:
    with pytest.raises(ValueError, match="'F F' at width 256 or 128 is no member of the space"):
        strategy(seeds_known=["F F"])


def test_widest_that_fits() -> None:
    space = small_space(width={"fit": "latency", "from": [128, 256, 384]})
    for c in search(strategy(space=space, budget=400e-6), 20):
        layers = len(c.proposal.architecture.layers)
        assert c.proposal.architecture.width == max(w for w in (128, 256, 384) if layers * w <= 800)


def test_only_failures_breed_nothing() -> None:
    history = search(strategy(), 8, losses=lambda index: None)
    assert {c.proposal.origin for c in history} == {"random"}


def test_history_decides_with_the_seed() -> None:
    """A proposal follows from (seed, index, history), not from what the strategy was asked before."""
    chosen = strategy()
    history = search(chosen, 10)
    assert strategy().propose(7, History(history[:7])) == history[7].proposal
    changed = History([*history[:6], candidate(6, history[6].proposal, None)])
    assert strategy().propose(7, changed) != history[7].proposal or chosen.population(changed) == []  # type: ignore[attr-defined]
