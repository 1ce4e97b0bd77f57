"""Candidates as Optuna's trials: answers are params, objectives are values, losses along the way are intermediate
values, and the rest are attributes. A job that a rule stopped is a pruned trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from nfsearch.proxies import Evaluation, Fidelity, Job
from nfsearch.search.candidate import Answers, Candidate, Proposal, State
from nfsearch.space import Architecture
from nfsearch.support.errors import typed_line
from nfsearch.support.metrics import Measurement

Choices = Callable[[Answers], Mapping[str, Sequence[Any]]]  # answers -> the options of each question answered

_STATES: Mapping[State, TrialState] = {
    "done": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def to_trial(candidate: Candidate, objectives: Sequence[str], choices: Choices | None) -> FrozenTrial:
    """The finished trial of a candidate."""
    proposal, found = candidate.proposal, candidate.evaluation
    options = choices(proposal.answers) if choices else {}
    curve = found.curve if found else ()
    trial = optuna.trial.create_trial(
        state=_STATES[candidate.state],
        values=[candidate.value(objective) for objective in objectives] if candidate.state == "done" else None,
        params={question: proposal.answers[question] for question in options},
        distributions={question: CategoricalDistribution(values) for question, values in options.items()},
        intermediate_values={tokens: loss for tokens, loss in curve if math.isfinite(loss)},
        user_attrs={
            "notation": proposal.architecture.notation,
            "width": proposal.architecture.width,
            "architecture": proposal.architecture.to_dict(),
            "fidelity": proposal.job.fidelity.to_dict(),
            "seed": proposal.job.seed,
            "continues": proposal.job.continues,
            "job": proposal.job.digest,
            "index": proposal.index,
            "origin": proposal.origin,
            "generation": proposal.generation,
            "parents": list(proposal.parents),
            "confirms": proposal.confirms,
            "costs": {name: [cost.value, cost.error] for name, cost in proposal.costs.items()},
            "refused": dict(proposal.refused),
            "answers": dict(proposal.answers),  # with params they are complete only where all choices are known
            "evaluation": found and found.to_dict(),
            "seconds": candidate.seconds,
            "attempts": candidate.attempts,
            "error": candidate.error,
        },
    )
    if trial.datetime_complete is not None:
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=candidate.seconds)
    return trial


def from_trial(trial: FrozenTrial) -> Candidate:
    """The inverse of `to_trial`. Raises ValueError for a trial that is no candidate."""
    try:
        kept = trial.user_attrs
        job = Job(
            Architecture.from_dict(kept["architecture"]),
            Fidelity.from_dict(kept["fidelity"]),
            kept["seed"],
            kept["continues"],
        )
        proposal = Proposal(
            index=kept["index"],
            job=job,
            answers=kept["answers"],
            origin=kept["origin"],
            generation=kept["generation"],
            parents=tuple(kept["parents"]),
            costs={name: Measurement(*values) for name, values in kept["costs"].items()},
            refused=kept["refused"],
            confirms=kept.get("confirms"),
        )
        return Candidate(
            number=trial.number,
            proposal=proposal,
            state=next(state for state, kind in _STATES.items() if kind == trial.state),
            evaluation=Evaluation.from_dict(kept["evaluation"]) if kept["evaluation"] else None,
            seconds=kept["seconds"],
            error=kept["error"],
            attempts=kept["attempts"],
        )
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise ValueError(f"trial {trial.number} of the study is not a candidate: {typed_line(error)}") from error
