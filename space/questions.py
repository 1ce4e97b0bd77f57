"""The questions that a space asks while a member is built, and those who answer them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

Answers = Mapping[str, Any]


@dataclass(frozen=True)
class Question:
    """`name` is the place asked about, the same in every member; `options` are the same whenever it is asked.

    `kind` is what a change of the answer changes: operator, ratio, ffn, blocks (the paper's four), pattern, setting,
    width or meta_tokens."""

    name: str
    kind: str
    options: tuple[Any, ...]

    def offering(self, indices: Iterable[int]) -> Question:
        """The same question with these options alone."""
        return replace(self, options=tuple(self.options[index] for index in indices))


class Answerer(Protocol):
    """Whoever chooses: a function that is given a question and returns one of its options."""

    def __call__(self, question: Question, /) -> Any: ...


def at_random(rng: random.Random) -> Answerer:
    """Answers uniformly."""
    return lambda question: question.options[rng.randrange(len(question.options))]


def first_option(question: Question) -> Any:
    """Answers with the first option, always."""
    return question.options[0]


def replaying(answers: Answers, otherwise: Answerer) -> Answerer:
    """Answers from a record where that has one of the options, else from somebody else."""

    def answer(question: Question) -> Any:
        known = question.name in answers and answers[question.name] in question.options
        return answers[question.name] if known else otherwise(question)

    return answer


def strictly_replaying(answers: Answers) -> Answerer:
    """Answers from a record that must have every answer. Raises ValueError where one is missing."""

    def answer(question: Question) -> Any:
        if question.name not in answers:
            raise ValueError(f"no answer to {question.name} (one of {listed(question.options)})")
        return answers[question.name]

    return answer


def listed(options: tuple[Any, ...]) -> str:
    return ", ".join(map(str, options))
