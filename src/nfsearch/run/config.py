"""The config of a search: one model, its sections defined beside what they set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, model_validator

from nfsearch.latency_lut.settings import LatencySettings
from nfsearch.latency_lut.workload import MEMORY, MEMORY_UNITS, TIME_UNITS, Workload
from nfsearch.proxies import ProxySettings
from nfsearch.proxies.settings import SplitData
from nfsearch.run.yaml_file import YamlFile, read_yaml
from nfsearch.search.settings import SearchSettings, WorkerSettings
from nfsearch.space import SpaceSettings

_NAMES = ("auto", "bytes", "python-stdlib")  # of tables, tokenizers and data; no files, whatever lies there


class Config(BaseModel):
    """Everything has a default but the space."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    space: SpaceSettings = Field(description="what may be built")
    latency: LatencySettings = Field(default_factory=LatencySettings, description="what is timed, and on what")
    proxy: ProxySettings = Field(default_factory=ProxySettings, description="the short training run")
    search: SearchSettings = Field(default_factory=SearchSettings, description="how candidates are chosen")
    objectives: tuple[str, ...] = Field(
        (), description="what is minimised: loss, then workloads by name, memory; by default loss and every workload"
    )
    limits: dict[str, float] = Field(
        default_factory=dict,
        description="hard limits, by name and unit: WORKLOAD_ms (_us, _s; at least: _tokens_per_s), memory_gb (_mb)",
    )
    workers: WorkerSettings = Field(default_factory=WorkerSettings, description="who trains the candidates")
    storage: str | None = Field(None, description="an Optuna storage URL; by default a journal in the run's folder")

    @model_validator(mode="after")
    def _names_exist(self) -> Config:
        names = ["loss", *self.latency.workloads, MEMORY]
        for name in self.objectives:
            if name not in names:
                raise ValueError(
                    f"objectives: {name!r} is none of {', '.join(names)}; latency.workloads defines workloads"
                )
        if self.objectives and self.objectives[0] != "loss":
            raise ValueError("objectives: the first is loss")
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError("objectives: one stands twice")
        budgets = self.budgets  # raises for a limit that is wrong
        if self.space.fit_width and not budgets.keys() & self.latency.workloads.keys():
            raise ValueError("space.width is {fit: latency}, which needs a latency in limits, such as tpot_ms: 2")
        return self

    @property
    def objective_names(self) -> tuple[str, ...]:
        return self.objectives or ("loss", *self.latency.workloads)

    @property
    def budgets(self) -> dict[str, float]:
        """See the function of this name."""
        return budgets(self.limits, self.latency.workloads)


def budgets(limits: Mapping[str, float], workloads: Mapping[str, Workload]) -> dict[str, float]:
    """The most of each cost: workload -> seconds, memory -> bytes; the tightest where several limits are for one.

    Raises ValueError for a limit that is no NAME_UNIT of a workload, or of memory, in a unit of its kind."""
    found: dict[str, float] = {}
    for limit, value in limits.items():
        if value <= 0:
            raise ValueError(f"limits.{limit}: expected a number above 0, found {value:g}")
        name, most = _limit(limit, value, workloads)
        found[name] = min(most, found.get(name, most))
    return found


def _limit(limit: str, value: float, workloads: Mapping[str, Workload]) -> tuple[str, float]:
    units = {MEMORY: tuple(MEMORY_UNITS), **dict.fromkeys(workloads, TIME_UNITS)}
    fitting = {name: limit.removeprefix(f"{name}_") for name in units if limit.startswith(f"{name}_")}
    name = max(fitting, key=lambda each: (fitting[each] in units[each], len(each)), default="")
    if not name:
        raise ValueError(
            f"limits: {limit!r} is no NAME_UNIT of {', '.join(units)} (such as {next(iter(workloads))}_ms); "
            "latency.workloads defines workloads"
        )
    unit = fitting[name]
    if unit not in units[name]:
        kind = "memory" if name == MEMORY else "a time"
        raise ValueError(f"limits: {limit!r} limits {name}, which is {kind}, in {', '.join(units[name])}, not {unit!r}")
    return name, value * MEMORY_UNITS[unit] if name == MEMORY else workloads[name].seconds(value, unit)


def load_config(path: Path, assignments: Sequence[str] = ()) -> tuple[Config, YamlFile]:
    """The config in a file, with `--set` assignments applied. Raises ValueError naming file, line and key."""
    file = read_yaml(path)
    for assignment in assignments:
        file.set(assignment)
    return _anchored(file.validate(Config)), file


def _anchored(config: Config) -> Config:
    """With local paths made absolute, so that they mean the same to every worker."""

    def anchor(text: str) -> str:
        named = text in _NAMES or text.startswith(("bpe:", "hf:"))
        return str(Path(text).resolve()) if not named and Path(text).exists() else text

    proxy, latency = config.proxy, config.latency
    if isinstance(proxy.data, str):
        data: str | SplitData = anchor(proxy.data)
    else:
        data = SplitData(train=anchor(proxy.data.train), validation=anchor(proxy.data.validation))
    proxy = proxy.model_copy(update={"data": data, "tokenizer": anchor(proxy.tokenizer)})
    latency = latency.model_copy(update={"table": anchor(latency.table)})
    return config.model_copy(update={"proxy": proxy, "latency": latency})
