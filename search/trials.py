"""Candidates as Optuna's trials: answers are params, objectives are values, losses along the way are intermediate
values. A job that a rule stopped is a pruned trial.

User attributes are for people, who see them in Optuna's dashboard, as they see the values: short, and in the units that
people read. The candidate itself is kept whole in one system attribute, which the dashboard does not show, and is read
back from there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat, PlainSerializer

from nfsearch.proxies import Evaluation, Fidelity, Job
from nfsearch.search.candidate import Answers, Candidate, Proposal, State
from nfsearch.space import Architecture
from nfsearch.support.errors import typed_line
from nfsearch.support.metrics import Measurement, Measurements, Metric

Choices = Callable[[Answers], Mapping[str, Sequence[Any]]]  # answers -> the options of each question answered

RECORD = "nfsearch"  # the system attribute that holds the candidate
LONGEST = 100  # characters of an attribute that people read: what fits into a window

_STATES: Mapping[State, TrialState] = {
    "done": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}

# JSON has no infinity: a loss that diverged, and an error bar that is not known, are null.
_Float = Annotated[
    float,
    BeforeValidator(lambda value: math.inf if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None),
]
_Measured = tuple[FiniteFloat, _Float]  # value and error


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Evaluation(_Part):
    metrics: dict[str, _Measured]
    tokens: int
    seconds: FiniteFloat
    curve: tuple[tuple[int, _Float], ...]
    notes: tuple[str, ...]
    rungs: tuple[tuple[int, FiniteFloat], ...] = ()


class _Record(_Part):
    """A candidate but for what the trial itself has, its number and its state."""

    architecture: dict[str, Any]
    fidelity: Fidelity
    seed: int
    index: int
    origin: str
    generation: int
    parents: tuple[int, ...]
    confirms: int | None
    costs: dict[str, _Measured]
    refused: dict[str, int]
    answers: dict[str, Any]  # with the trial's params they are complete only where all choices are known
    evaluation: _Evaluation | None
    seconds: FiniteFloat
    attempts: int
    error: str | None


def to_trial(
    candidate: Candidate, objectives: Sequence[str], metrics: Mapping[str, Metric], choices: Choices | None
) -> FrozenTrial:
    """The finished trial of a candidate; its values are the objectives in the units that people read."""
    answers, found = candidate.proposal.answers, candidate.evaluation
    options = choices(answers) if choices else {}
    curve = found.curve if found else ()
    values = [candidate.value(name) * metrics[name].unit.scale for name in objectives if candidate.state == "done"]
    trial = optuna.trial.create_trial(
        state=_STATES[candidate.state],
        values=values or None,
        params={question: answers[question] for question in options},
        distributions={question: CategoricalDistribution(values) for question, values in options.items()},
        intermediate_values={tokens: loss for tokens, loss in curve if math.isfinite(loss)},
        user_attrs=_shown(candidate, [metric for name, metric in metrics.items() if name not in objectives]),
        system_attrs={RECORD: _record(candidate).model_dump(mode="json")},
    )
    if trial.datetime_complete is not None:
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=candidate.seconds)
    return trial


def from_trial(trial: FrozenTrial) -> Candidate:
    """The inverse of `to_trial`. Raises ValueError for a trial that is no candidate."""
    try:
        kept = _Record.model_validate(trial.system_attrs[RECORD])
        job = Job(Architecture.from_dict(kept.architecture), kept.fidelity, kept.seed)
        proposal = Proposal(
            index=kept.index,
            job=job,
            answers=kept.answers,
            origin=kept.origin,
            generation=kept.generation,
            parents=kept.parents,
            costs=_measurements(kept.costs),
            refused=kept.refused,
            confirms=kept.confirms,
        )
        return Candidate(
            number=trial.number,
            proposal=proposal,
            state=next(state for state, kind in _STATES.items() if kind == trial.state),
            evaluation=_evaluation(kept.evaluation) if kept.evaluation else None,
            seconds=kept.seconds,
            error=kept.error,
            attempts=kept.attempts,
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, StopIteration) as error:
        raise ValueError(f"trial {trial.number} of the study is not a candidate: {typed_line(error)}") from error


def _record(candidate: Candidate) -> _Record:
    proposal, found = candidate.proposal, candidate.evaluation
    return _Record(
        architecture=proposal.architecture.to_dict(),
        fidelity=proposal.job.fidelity,
        seed=proposal.job.seed,
        index=proposal.index,
        origin=proposal.origin,
        generation=proposal.generation,
        parents=proposal.parents,
        confirms=proposal.confirms,
        costs=_pairs(proposal.costs),
        refused=dict(proposal.refused),
        answers=dict(proposal.answers),
        evaluation=found
        and _Evaluation(
            metrics=_pairs(found.metrics),
            tokens=found.tokens,
            seconds=found.seconds,
            curve=found.curve,
            notes=found.notes,
            rungs=found.rungs,
        ),
        seconds=candidate.seconds,
        attempts=candidate.attempts,
        error=candidate.error,
    )


def _evaluation(kept: _Evaluation) -> Evaluation:
    return Evaluation(_measurements(kept.metrics), kept.tokens, kept.seconds, kept.curve, kept.notes, kept.rungs)


def _pairs(measured: Measurements) -> dict[str, _Measured]:
    return {name: (each.value, each.error) for name, each in measured.items()}


def _measurements(pairs: Mapping[str, _Measured]) -> Measurements:
    return {name: Measurement(*pair) for name, pair in pairs.items()}


def _shown(candidate: Candidate, others: Sequence[Metric]) -> dict[str, Any]:
    """What the dashboard shows beside params and objectives."""
    proposal, measured = candidate.proposal, candidate.metrics
    shown: dict[str, Any] = {
        "notation": proposal.architecture.notation,
        "width": proposal.architecture.width,
        **{each.label: measured[each.name].value * each.unit.scale for each in others if each.name in measured},
        "origin": proposal.origin,
        "generation": proposal.generation,
        "parents": " ".join(map(str, proposal.parents)),
        "confirms": "" if proposal.confirms is None else proposal.confirms,
        "attempts": candidate.attempts,
        "notes": "; ".join(candidate.evaluation.notes) if candidate.evaluation else "",
        "error": candidate.error or "",
    }
    return {name: _short(value) for name, value in shown.items() if value != ""}


def _short(value: Any) -> Any:
    return f"{value[: LONGEST - 4]} ..." if isinstance(value, str) and len(value) > LONGEST else value
