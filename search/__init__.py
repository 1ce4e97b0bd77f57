"""How to choose: candidates, strategies that propose them, executors that evaluate them, the loop, and the study."""

from nfsearch.search.budgets import Budgets, Limits
from nfsearch.search.candidate import Candidate, Proposal
from nfsearch.search.executor import EXECUTORS, Executor, WorkerSettings
from nfsearch.search.history import History
from nfsearch.search.rule import RULES, Rule, RuleSettings
from nfsearch.search.strategy import STRATEGIES, Exhausted, KnownDesign, Problem, SearchSettings, Strategy

__all__ = [
    "EXECUTORS",
    "RULES",
    "STRATEGIES",
    "Budgets",
    "Candidate",
    "Executor",
    "Exhausted",
    "History",
    "KnownDesign",
    "Limits",
    "Problem",
    "Proposal",
    "Rule",
    "RuleSettings",
    "SearchSettings",
    "Strategy",
    "WorkerSettings",
]
