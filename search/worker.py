"""What runs inside a worker process. Neither torch nor ray is imported here: the evaluator brings what it needs."""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nfsearch.support.errors import typed_line

Report = Callable[[int, float], None]  # (tokens seen, training loss)
# (Architecture.to_dict(), seed, report) -> Score.to_dict()
Evaluator = Callable[[Mapping[str, Any], int, Report], Mapping[str, Any]]
EvaluatorFactory = Callable[[], Evaluator]


@dataclass(frozen=True)
class Outcome:
    """How an evaluation ended: with a score, or with an error."""

    score: Mapping[str, Any] | None
    error: str | None = None
    sound: bool = True  # whether the process can be trusted with another candidate
    resident: int = 0  # bytes of memory the process holds


class Worker:
    """An actor that keeps one evaluator warm. `latest` answers while `evaluate` runs in another thread."""

    def __init__(self, factory: EvaluatorFactory, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
        self._factory, self._threads = factory, threads
        self._latest: tuple[int, float] | None = None

    def start(self) -> str | None:
        """Makes the evaluator. Returns what went wrong, or None."""
        try:
            self._evaluator = self._factory()
        except Exception as error:
            return _describe(error)
        return None

    def evaluate(self, architecture: Mapping[str, Any], seed: int) -> Outcome:
        """Runs the evaluator. Its exceptions are outcomes: the same seed would raise them again."""
        self._latest = None
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self._threads)  # holds for the calling thread, and each call may have another
        try:
            score = self._evaluator(architecture, seed, self._report)
        except ArithmeticError as error:  # the numbers went bad, not the process: a loss that diverged
            return Outcome(None, str(error) or type(error).__name__, resident=resident_bytes())
        except Exception as error:  # out of GPU memory, a broken CUDA context, a bug: start afresh
            return Outcome(None, _describe(error), sound=False)
        if not math.isfinite(score["loss"]):
            return Outcome(None, f"the loss is {score['loss']}", resident=resident_bytes())
        return Outcome(score, resident=resident_bytes())

    def latest(self) -> tuple[int, float] | None:
        """The last report of the running evaluation."""
        return self._latest

    def _report(self, tokens: int, loss: float) -> None:
        self._latest = (tokens, loss)


def resident_bytes() -> int:
    """Memory of this process in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _describe(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{typed_line(error)} ({Path(frame.filename).name}:{frame.lineno})"
