"""How to choose: strategies, the Ray engine, the study that keeps results, and Pareto maths."""

from nfsearch.search.aging import Aging
from nfsearch.search.budgets import Budgets
from nfsearch.search.candidate import Candidate, Proposal, objective_value
from nfsearch.search.random import Random
from nfsearch.search.settings import KnownDesign, SearchSettings, WorkerSettings
from nfsearch.search.strategy import Exhausted, Strategy

STRATEGIES: dict[str, type[Strategy]] = {"aging": Aging, "random": Random}

__all__ = [
    "STRATEGIES",
    "Aging",
    "Budgets",
    "Candidate",
    "Exhausted",
    "KnownDesign",
    "Proposal",
    "Random",
    "SearchSettings",
    "Strategy",
    "WorkerSettings",
    "objective_value",
]
