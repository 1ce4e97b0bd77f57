"""The suite that every stopping rule passes."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, ClassVar

from nfsearch.search import RULES, STRATEGIES, History, Rule
from nfsearch.testing.samples import candidate, problem


class RuleSuite:
    """Name the rule, and its settings. `stops` says whether it is expected to stop a job whose loss stays far above
    that of every other at each point of the way, after twenty others."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}
    stops: ClassVar[bool] = True

    def rule(self) -> Rule:
        kind = RULES.find(self.name)
        return kind(kind.Settings(kind=self.name, **self.settings))

    def history(self) -> History:
        """Twenty-one candidates, of which the fifth failed."""
        kind, rng = STRATEGIES.find("random"), random.Random(0)
        strategy, history = kind(problem(), kind.Settings(strategy="random")), History()
        for index in range(21):
            loss = None if index == 4 else rng.random()
            history.append(candidate(index, strategy.propose(index, history), loss))
        return history

    def test_it_answers_yes_or_no_and_the_same_each_time(self) -> None:
        *history, last = self.history()
        curve = [(50, 1.5), (100, 1.2)]
        for known in (History(), History(history[:1]), History(history)):
            for points in (curve[:1], curve):
                answers = [rule.go_on(last.proposal.job, points, known) for rule in (self.rule(), self.rule())]
                assert answers[0] in (True, False)
                assert answers[0] == answers[1]

    def test_the_best_of_all_goes_on(self) -> None:
        *history, last = self.history()
        assert self.rule().go_on(last.proposal.job, [(50, -9.0), (100, -9.0)], History(history))

    def test_a_hopeless_one_is_stopped(self) -> None:
        *history, last = self.history()
        assert self.rule().go_on(last.proposal.job, [(50, 99.0), (80, 99.0)], History(history)) is not self.stops
