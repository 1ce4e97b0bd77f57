"""What an executor is: it evaluates jobs, somewhere, and tells what becomes of them."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

from pydantic import Field
from typing_extensions import Self

from nfsearch.proxies import Evaluation, Job, Proxy, Report, TooLarge
from nfsearch.support.errors import typed_line
from nfsearch.support.notes import listening
from nfsearch.support.registry import Registry
from nfsearch.support.settings import Settings


class WorkerSettings(Settings):
    """The field that the `workers:` section of a config has whatever the executor; its own settings extend it."""

    executor: str = Field(default="ray", description="who evaluates: ray (worker processes) or local (this process)")

    @property
    def longest(self) -> float:
        """Seconds that one candidate may take."""
        return math.inf


@dataclass(frozen=True)
class Running:
    """A job being evaluated, the seconds since this attempt at it began, and which attempt it is."""

    job: Job
    seconds: float
    attempt: int = 1


@dataclass(frozen=True)
class Reported:
    """A running job has seen so many tokens; its training loss since the last report, in nats per token."""

    job: Job
    tokens: int
    loss: float


@dataclass(frozen=True)
class Ended:
    """A job has an evaluation, or an error; wall time spent on it and the attempts that it took."""

    job: Job
    evaluation: Evaluation | None
    error: str | None
    seconds: float
    attempts: int = 1


Handle = Callable[[Reported | Ended], None]


class Executor(Protocol):
    """Evaluates jobs with a proxy. Used as a context manager: entering raises ValueError where there is no room for the
    workers and RuntimeError where they do not start; leaving drops what still runs.

    The constructor, which is called before a search has done or written anything, raises ValueError for settings that
    cannot be served. It starts nothing.
    """

    Settings: ClassVar[type[WorkerSettings]]

    def __init__(self, settings: WorkerSettings, proxy: Proxy, device: str) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def workers(self) -> int:
        """How many jobs are evaluated at a time."""

    @property
    def free(self) -> int:
        """How many more jobs it has use for now."""

    @property
    def running(self) -> Sequence[Running]:
        """The jobs that are being evaluated."""

    def submit(self, job: Job) -> None:
        """Takes a job, which will end."""

    def cancel(self, job: Job) -> None:
        """Ends a job soon. What it tells until then is of no interest."""

    def events(self, handle: Handle, timeout: float) -> None:
        """Works on what was submitted, and hands over each event as it comes; returns after some, or after about
        `timeout` seconds. `handle` may submit and cancel. Raises OSError or RuntimeError where no more can be
        evaluated: what it evaluates with is gone."""


EXECUTORS: Registry[type[Executor]] = Registry("nfsearch.executors", "executor")


class Cancelled(BaseException):
    """Raised by a job's report to end it. No Exception, so that no proxy takes it for an error of its own."""


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended: with an evaluation or an error, or with neither where it was cancelled."""

    evaluation: Evaluation | None
    error: str | None = None
    sound: bool = True  # whether the process can be trusted with another job
    again: bool = False  # whether the job may do better in another process, or on another machine
    too_large: bool = False  # whether it was refused for what this machine has not


def attempt(proxy: Proxy, job: Job, report: Report) -> Outcome:
    """Evaluates a job in this process. Exceptions are outcomes: the same seed would raise them again. What was noted on
    the way goes with the evaluation, or with the error, which it may explain."""
    with listening() as said:
        try:
            found = proxy.evaluate(job, report)
        except Cancelled:
            return Outcome(None)
        except (ArithmeticError, TooLarge) as error:  # the candidate is bad, not the process: a loss that diverged
            text = "; after: ".join((str(error) or type(error).__name__, *said))
            return Outcome(None, text, too_large=isinstance(error, TooLarge))
        except Exception as error:  # out of GPU memory, a broken CUDA context, a bug: start afresh
            missing = isinstance(error, OSError)  # what the machine does not have, or has no room for
            return Outcome(None, "; after: ".join((described(error), *said)), sound=False, again=missing)
    for name, measured in found.metrics.items():
        if not math.isfinite(measured.value):
            return Outcome(None, "; after: ".join((f"the {name} is {measured.value}", *said)))
    return Outcome(replace(found, notes=(*found.notes, *said)))


def described(error: Exception) -> str:
    """An error in one line, with the place where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{typed_line(error)} ({Path(frame.filename).name}:{frame.lineno})"
