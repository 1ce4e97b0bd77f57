"""A long search: no step of it goes through all that has finished."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from nfsearch.search import Candidate, History, Limits
from nfsearch.search.candidate import comparable
from nfsearch.search.pareto import members
from nfsearch.search.progress import Tally
from nfsearch.search.rules.median import Median, MedianSettings
from nfsearch.testing.samples import candidate, small_space
from tests.search.fakes import METRICS, loop, search, strategy


def test_what_is_kept_as_a_search_grows_is_what_all_of_it_gives() -> None:
    rng = random.Random(0)
    proposals = [found.proposal for found in search(strategy("random", space=small_space()), 40)]
    dear = replace(proposals[0].job.fidelity, tokens=200)
    limits, names = Limits({"tpot": 1e-3}, METRICS), ("loss", "tpot")
    history, tally, curves = History(), Tally(names, limits), list[float]()
    for number in range(300):
        proposal = rng.choice(proposals)
        if number % 100 > 60:
            proposal = replace(proposal, job=replace(proposal.job, fidelity=dear))
        found = candidate(number, proposal, None if number % 7 == 3 else rng.randrange(8) / 4)
        history.append(found)
        tally.add(found)
        if number % 7 != 3 and found.fidelity == dear:
            curves.append(found.value("loss"))
        assert list(history.comparable) == comparable(history)
        assert tally.standing.front == tuple(each.number for each in members(history, names, limits))
        assert list(history.lowest_losses(dear, 100)) == sorted(curves)
    best = min(members(history, names, limits), key=lambda each: (each.value("loss"), each.number))
    assert tally.standing.best == best
    assert tally.standing.states == {"done": 257, "failed": 43}


class Unread(list[Candidate]):
    """A list that nobody goes through."""

    def __iter__(self) -> Iterator[Candidate]:
        pytest.fail("the whole history is gone through")


class Long(History):
    """A history that can be asked and added to."""

    def __iter__(self) -> Iterator[Candidate]:
        pytest.fail("the whole history is gone through")


def long(history: History) -> History:
    """The same one from here on."""
    history.__class__, history._all = Long, Unread(history._all)
    return history


@pytest.mark.parametrize("name", ["aging", "random"])
def test_no_decision_goes_through_all_that_has_finished(name: str) -> None:
    chosen = strategy(name)
    history = long(search(chosen, 20))
    proposal = chosen.propose(20, history)
    rule = Median(MedianSettings(kind="median", least=2))
    assert rule.go_on(proposal.job, [(50, 0.0)], history)
    assert not rule.go_on(proposal.job, [(50, 9.0)], history)
    fidelity = proposal.job.fidelity
    assert rule.go_on(proposal.job, [(fidelity.tokens - fidelity.batch * fidelity.sequence + 1, 9.0)], history)


def test_no_step_of_a_search_goes_through_all_that_has_finished(tmp_path: Path) -> None:
    made = loop(tmp_path)
    long(made.history)
    assert made.run().standing.finished == 12
