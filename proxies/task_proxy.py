"""What makes a proxy of a synthetic task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from nfsearch.proxies.cache import digest
from nfsearch.proxies.fidelity import Fidelity
from nfsearch.proxies.job import Evaluation, Job, Report
from nfsearch.proxies.proxy import ProxySettings
from nfsearch.proxies.tasks import Task, TaskSettings
from nfsearch.proxies.twin import check_narrowing, narrowed
from nfsearch.space import SearchSpace

_RECIPE = {"batch", "learning_rate", "narrow"}  # what is said of the training rather than of the data


class TaskProxy(Task):
    """Scores a candidate by a stand-in that learns the task; see `nfsearch.proxies.tasks`."""

    Settings: ClassVar[type[ProxySettings]] = TaskSettings

    def __init__(self, settings: TaskSettings, device: str) -> None:
        self.settings, self.device = settings, device

    @property
    def vocab(self) -> int:
        return self.settings.vocabulary

    @property
    def fidelity(self) -> Fidelity:
        settings = self.settings
        values: dict[str, Any] = settings.model_dump(exclude={"kind", *_RECIPE})
        words = ", ".join(f"{name} {value}" for name, value in values.items())
        found = settings.recipe.fidelity(digest([self.name, values]), self.device)
        return replace(found, recipe=f"{self.name} of {words}; {found.recipe}")

    def check(self, space: SearchSpace) -> None:
        check_narrowing(space, self.settings.narrow, f"{self.name}.narrow")

    def start(self) -> None:
        import nfsearch.proxies.task_trainer  # noqa: F401  (and with it torch)

    def evaluate(self, job: Job, report: Report | None = None) -> Evaluation:
        """Raises `nfsearch.proxies.trainer.Diverged` when a loss is not finite."""
        from nfsearch.proxies.task_trainer import train_on_task

        if job.fidelity != self.fidelity:
            raise ValueError(f"these settings cannot train at {job.fidelity}")
        stand_in = narrowed(job.architecture, self.settings.narrow, self.vocab)
        return train_on_task(stand_in, self, seed=job.seed, device=self.device, report=report)
