"""The median rule (Golovin et al., Google Vizier, 2017): a job that is worse than half of the others is stopped."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field

from nfsearch.proxies import Job
from nfsearch.search.history import History
from nfsearch.search.rule import RuleSettings


class MedianSettings(RuleSettings):
    """When the rule begins to judge."""

    least: int = Field(default=10, gt=0, description="candidates that must have got as far as the one that is judged")
    share: float = Field(
        default=0.3, ge=0, le=1, description="share of its tokens that a candidate sees before it is judged"
    )


class Median:
    """Compares a job's lowest training loss so far with what the others at its fidelity had at the same point. The
    search ranks who starts fastest where it stops early, so give candidates time to show what they are worth."""

    Settings: ClassVar[type[RuleSettings]] = MedianSettings

    def __init__(self, settings: MedianSettings) -> None:
        self.settings = settings

    def go_on(self, job: Job, curve: Sequence[tuple[int, float]], history: History) -> bool:
        tokens, _ = curve[-1]
        step = job.fidelity.batch * job.fidelity.sequence
        if tokens < self.settings.share * job.fidelity.tokens or tokens + step > job.fidelity.tokens:
            return True  # it is too early, or nothing is left to be saved
        others = history.lowest_losses(job.fidelity, tokens)
        return len(others) < self.settings.least or min(loss for _, loss in curve) <= statistics.median(others)
