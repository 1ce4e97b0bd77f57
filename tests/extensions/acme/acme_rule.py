"""A stopping rule: a job whose loss is above the median of the others at the same point of the way is stopped."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pydantic import Field

from nfsearch.proxies import Job
from nfsearch.search import Candidate, RuleSettings


class MedianSettings(RuleSettings):
    """When it begins to judge."""

    least: int = Field(5, gt=0, description="candidates that must have got as far")


class Median:
    """Compares with the curves of the candidates that have ended at the same fidelity."""

    Settings = MedianSettings

    def __init__(self, settings: MedianSettings) -> None:
        self.settings = settings

    def go_on(self, job: Job, curve: Sequence[tuple[int, float]], history: Sequence[Candidate]) -> bool:
        tokens, loss = curve[-1]
        others = [
            dict(found.evaluation.curve)[tokens]
            for found in history
            if found.evaluation is not None
            and found.proposal.job.fidelity == job.fidelity
            and tokens in dict(found.evaluation.curve)
        ]
        return len(others) < self.settings.least or loss <= statistics.median(others)
