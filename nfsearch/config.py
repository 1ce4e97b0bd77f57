"""The config of a search: one model, its sections defined beside what they set."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nfsearch.latency_lut.settings import LatencySettings
from nfsearch.proxies import ProxySettings
from nfsearch.proxies.settings import SplitData
from nfsearch.search.settings import SearchSettings, WorkerSettings
from nfsearch.space import SpaceSettings
from nfsearch.yaml_file import YamlFile, read_yaml


class Config(BaseModel):
    """Everything has a default but the space."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    space: SpaceSettings = Field(description="what may be built")
    latency: LatencySettings = Field(default_factory=LatencySettings, description="what is timed, and on what")
    proxy: ProxySettings = Field(default_factory=ProxySettings, description="the short training run")
    search: SearchSettings = Field(default_factory=SearchSettings, description="how candidates are chosen")
    objectives: tuple[str, ...] = Field(
        (), description="what is minimised: loss and workloads by name; by default loss and every workload"
    )
    limits: dict[str, float] = Field(
        default_factory=dict, description="hard limits: WORKLOAD_ms or WORKLOAD_s for each workload, memory_gb"
    )
    workers: WorkerSettings = Field(default_factory=WorkerSettings, description="who trains the candidates")
    storage: str | None = Field(None, description="an Optuna storage URL; by default a journal in the run's folder")

    @model_validator(mode="after")
    def _names_exist(self) -> Config:
        names = ["loss", *self.latency.workloads]
        for name in self.objectives:
            if name not in names:
                raise ValueError(f"objectives: {name!r} is none of {', '.join(names)}")
        if self.objectives and self.objectives[0] != "loss":
            raise ValueError("objectives: the first is loss")
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives: one stands twice")
        allowed = [f"{name}_{unit}" for name in self.latency.workloads for unit in ("ms", "s")] + ["memory_gb"]
        for name, value in self.limits.items():
            if name not in allowed:
                raise ValueError(f"limits: {name!r} is none of {', '.join(allowed)}")
            if value <= 0:
                raise ValueError(f"limits.{name}: expected a number above 0, found {value:g}")
        if self.space.fit_width and not self.budgets:
            raise ValueError("space.width is {fit: latency}, which needs a latency in limits, such as tpot_ms: 2")
        return self

    @property
    def objective_names(self) -> tuple[str, ...]:
        return self.objectives or ("loss", *self.latency.workloads)

    @property
    def budgets(self) -> dict[str, float]:
        """See the function of this name."""
        return budgets(self.limits)


def budgets(limits: Mapping[str, float]) -> dict[str, float]:
    """The limits that are times: workload -> seconds; the tighter one where both units are given."""
    found: dict[str, float] = {}
    for name, value in limits.items():
        if match := re.fullmatch(r"(.+)_(ms|s)", name):
            seconds = value / 1e3 if match[2] == "ms" else value
            found[match[1]] = min(seconds, found.get(match[1], seconds))
    return found


def load_config(path: Path, assignments: Sequence[str] = ()) -> tuple[Config, YamlFile]:
    """The config in a file, with `--set` assignments applied. Raises ValueError naming file, line and key."""
    file = read_yaml(path)
    for assignment in assignments:
        file.set(assignment)
    return _anchored(file.validate(Config)), file


def _anchored(config: Config) -> Config:
    """With local paths made absolute, so that a run's folder works from anywhere."""

    def anchor(text: str) -> str:
        return str(Path(text).resolve()) if Path(text).exists() else text

    proxy, latency = config.proxy, config.latency
    if isinstance(proxy.data, str):
        data: str | SplitData = anchor(proxy.data)
    else:
        data = SplitData(train=anchor(proxy.data.train), validation=anchor(proxy.data.validation))
    proxy = proxy.model_copy(update={"data": data, "tokenizer": anchor(proxy.tokenizer)})
    latency = latency.model_copy(update={"table": anchor(latency.table)})
    return config.model_copy(update={"proxy": proxy, "latency": latency})
