"""The suite that every strategy passes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from nfsearch.search import STRATEGIES, Exhausted, History, Problem, Strategy
from nfsearch.testing.samples import candidate, problem, small_space

COUNT = 30  # candidates of a search


class StrategySuite:
    """Name the strategy, and settings where its defaults do not do for a search of thirty candidates."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}

    def strategy(self, problem: Problem, **settings: Any) -> Strategy:
        kind = STRATEGIES.find(self.name)
        fields = {"evaluations": COUNT, "population": 8, **self.settings, **settings}
        known = {name: value for name, value in fields.items() if name in kind.Settings.model_fields}
        return kind(problem, kind.Settings(strategy=self.name, **known))

    def search(self, strategy: Strategy, count: int = COUNT) -> History:
        """What one worker would find; every seventh candidate fails."""
        rng, history = random.Random(1), History()
        for index in range(count):
            proposal = strategy.propose(index, history)
            history.append(candidate(index, proposal, None if index % 7 == 6 else rng.random()))
        return history

    def test_proposes_members_of_the_space_that_rebuild_from_their_answers(self) -> None:
        given = problem()
        for found in self.search(self.strategy(given)):
            proposal = found.proposal
            assert proposal.index == found.number
            assert proposal.job == given.job(proposal.architecture), "a job at another fidelity or with another seed"
            assert given.space.build(proposal.answers).architecture == proposal.architecture
            assert proposal.origin
            assert all(parent < found.number for parent in proposal.parents)
            assert proposal.costs == given.budgets.estimate(proposal.architecture)

    def test_no_job_twice_nor_one_that_runs(self) -> None:
        strategy = self.strategy(problem())
        history = self.search(strategy)
        assert len({found.proposal.job.digest for found in history}) == COUNT
        running = strategy.propose(COUNT, history).job.digest
        assert strategy.propose(COUNT, history, {running}).job.digest != running

    def test_a_proposal_follows_from_index_and_history_alone(self) -> None:
        """So that a search that was stopped goes on as if it had not been."""
        history = self.search(self.strategy(problem()))
        for index in (0, 5, 17, COUNT - 1):
            assert self.strategy(problem()).propose(index, History(history[:index])) == history[index].proposal

    def test_another_seed_searches_differently(self) -> None:
        one, two = (self.search(self.strategy(problem(), seed=seed), 12) for seed in (0, 1))
        assert [found.proposal.architecture for found in one] != [found.proposal.architecture for found in two]

    def test_nothing_over_a_limit_is_proposed(self) -> None:
        history = self.search(self.strategy(problem(most_seconds=400e-6)))
        assert all(found.value("tpot") <= 400e-6 for found in history)

    def test_failures_alone_do_not_end_it(self) -> None:
        strategy, history = self.strategy(problem()), History()
        for index in range(12):
            history.append(candidate(index, strategy.propose(index, history), None))
        assert len({found.proposal.job.digest for found in history}) == 12

    def test_a_space_that_is_used_up_ends_it(self) -> None:
        space = small_space(width=128, layers="(D|A|M2) F{0..1}", where={})  # six members
        strategy, history = self.strategy(problem(space)), History()

        def use_up() -> None:
            for index in range(7):
                history.append(candidate(index, strategy.propose(index, history), 1.0))

        with pytest.raises(Exhausted):
            use_up()
        assert history

    def test_a_limit_that_nothing_keeps_is_told_at_once(self) -> None:
        with pytest.raises(ValueError, match="limit"):
            self.strategy(problem(most_seconds=1e-9)).propose(0, History())
