"""A stopping rule: a job whose loss is above a ceiling is stopped."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from nfsearch.proxies import Job
from nfsearch.search import History, RuleSettings


class CeilingSettings(RuleSettings):
    """Where the ceiling is."""

    most: float = Field(default=20, gt=0, description="the highest loss of a job that goes on")


class Ceiling:
    """Looks at the latest report alone."""

    Settings = CeilingSettings

    def __init__(self, settings: CeilingSettings) -> None:
        self.settings = settings

    def go_on(self, job: Job, curve: Sequence[tuple[int, float]], history: History) -> bool:
        _, loss = curve[-1]
        return loss <= self.settings.most
