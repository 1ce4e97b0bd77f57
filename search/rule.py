"""What a stopping rule is: it says whether a job that runs shall go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from pydantic import Field

from nfsearch.proxies import Job
from nfsearch.search.history import History
from nfsearch.support.registry import Registry
from nfsearch.support.settings import Settings


class RuleSettings(Settings):
    """The field that the `rule:` section of a config has whatever its kind; a rule's own settings extend it."""

    kind: str = Field(description="the name of a stopping rule")


class Rule(Protocol):
    """Asked after each report of a running job."""

    Settings: ClassVar[type[RuleSettings]]

    def __init__(self, settings: RuleSettings) -> None: ...

    def go_on(self, job: Job, curve: Sequence[tuple[int, float]], history: History) -> bool:
        """Whether the job shall go on, given its (tokens seen, training loss) pairs so far and the candidates that have
        ended."""


RULES: Registry[type[Rule]] = Registry("nfsearch.rules", "stopping rule")
