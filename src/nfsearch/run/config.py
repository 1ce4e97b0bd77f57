"""The config of a search: one model, its sections defined beside what they set.

Some sections name a kind: a strategy, a proxy, a stopping rule, an executor; `also:` names several proxies. The kind
decides which fields the section has, so the model is made for the kinds that a config names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, create_model, field_validator, model_validator

from nfsearch.latency_lut.settings import LatencySettings
from nfsearch.proxies import PROXIES, ProxySettings
from nfsearch.run.metrics import known_metrics
from nfsearch.run.yaml_file import YamlFile, read_yaml
from nfsearch.search import EXECUTORS, RULES, STRATEGIES, Limits, RuleSettings, SearchSettings, WorkerSettings
from nfsearch.space import SpaceSettings
from nfsearch.support.metrics import Metric
from nfsearch.support.names import nearest
from nfsearch.support.settings import SettingError, Settings

# Sections that name a kind: the key that names it, and where kinds are found.
_KINDS: dict[str, tuple[str, Any]] = {
    "proxy": ("kind", PROXIES),
    "search": ("strategy", STRATEGIES),
    "rule": ("kind", RULES),
    "workers": ("executor", EXECUTORS),
}
_SQLITE = "sqlite:///"  # how the URL of a file begins


class Config(Settings):
    """Everything has a default but the space. `model_for` gives the model with the fields of the kinds named."""

    space: SpaceSettings = Field(description="what may be built")
    latency: LatencySettings = Field(default_factory=LatencySettings, description="what is timed, and on what")
    proxy: ProxySettings = Field(description="how candidates are scored")
    also: Settings = Field(
        default_factory=Settings,
        description="proxies that score each candidate beside `proxy`, each with its settings, such as "
        "{mqar: {pairs: 64}}; their metrics can be objectives and limits",
    )
    search: SearchSettings = Field(description="how candidates are chosen")
    rule: RuleSettings | None = Field(default=None, description="which candidates are stopped early; null: none")
    objectives: tuple[str, ...] = Field(
        default=(),
        description="metrics to minimise, the first decides; by default the proxy's first and every workload",
    )
    limits: dict[str, float] = Field(
        default_factory=dict,
        description="hard limits, by name and unit: WORKLOAD_ms (_us, _s; at least: _tokens_per_s), memory_gb (_mb), "
        "parameters_m, loss",
    )
    workers: WorkerSettings = Field(description="who evaluates the candidates")
    storage: str | None = Field(
        default=None, description="an Optuna storage URL; by default a journal in the run's folder"
    )

    @field_validator("storage")
    @classmethod
    def _is_a_url(cls, storage: str | None) -> str | None:
        if storage is not None and "://" not in storage:
            raise ValueError(f"expected a URL, such as {_SQLITE}runs.db, found {storage!r}")
        if storage in ("sqlite://", _SQLITE, f"{_SQLITE}:memory:"):
            raise ValueError(f"expected a URL of what outlives the run, such as {_SQLITE}runs.db, found {storage!r}")
        return storage

    @model_validator(mode="after")
    def _names_exist(self) -> Config:
        if self.proxy.kind in self.others:
            raise SettingError("is the kind of `proxy` already", "also", self.proxy.kind)
        names = self.metrics
        for number, name in enumerate(self.objectives):
            if name not in names:
                known = f"{', '.join(names)}; latency.workloads defines workloads"
                raise SettingError(f"{name!r} is none of {known}", "objectives", number)
            if name in self.objectives[:number]:
                raise SettingError(f"{name!r} is listed twice", "objectives", number)
        most = self.limit_values.most  # raises for a limit that is wrong
        if self.space.fit_width and not most.keys() & self.latency.workloads.keys():
            raise SettingError("{fit: latency} needs a latency in limits, such as tpot_ms: 2", "space", "width")
        return self

    @property
    def metrics(self) -> dict[str, Metric]:
        """All that candidates of this config are measured by, by name."""
        return known_metrics(self.scores, self.latency.workloads)

    @property
    def others(self) -> dict[str, ProxySettings]:
        """The settings of the proxies beside `proxy`, by kind."""
        return {name: getattr(self.also, name) for name in type(self.also).model_fields}

    @property
    def scores(self) -> list[Metric]:
        """What proxies measure, the main one's first."""
        return [metric for kind in (self.proxy.kind, *self.others) for metric in PROXIES.find(kind).metrics]

    @property
    def objective_names(self) -> tuple[str, ...]:
        return self.objectives or (PROXIES.find(self.proxy.kind).metrics[0].name, *self.latency.workloads)

    @property
    def limit_values(self) -> Limits:
        """The limits in the units of the metrics; the tightest where several are for one."""
        return read_limits(self.limits, self.metrics)


def model_for(values: Mapping[str, Any]) -> type[Config]:
    """The config's model for the kinds that these values name. Raises SettingError for a kind that nobody defines."""
    named = []
    for section, (key, registry) in _KINDS.items():
        given = values.get(section)
        name = given.get(key) if isinstance(given, Mapping) else None
        if name is None and section == "rule":
            continue  # no rule, or one without a kind, which the model refuses
        try:
            named.append((section, registry.find(_default(section, key) if name is None else str(name)).Settings))
        except ValueError as error:
            raise SettingError(str(error), section, key) from None
    also = values.get("also")
    named.append(("also", _others(tuple(also) if isinstance(also, Mapping) else ())))
    return _model(tuple(named))


def validated(values: Mapping[str, Any]) -> Config:
    """The config that a mapping holds, as one that was written down. Raises ValueError."""
    return model_for(values).model_validate(values)


def _default(section: str, key: str) -> str:
    settings: dict[str, type[BaseModel]] = {"proxy": ProxySettings, "search": SearchSettings, "workers": WorkerSettings}
    return str(settings[section].model_fields[key].default)


@cache
def _others(kinds: tuple[Any, ...]) -> type[Settings]:
    """The section with a key for each of these kinds of proxy. Raises SettingError as `model_for` does."""
    fields: dict[str, Any] = {}
    for kind in map(str, kinds):
        try:
            settings = PROXIES.find(kind).Settings
        except ValueError as error:
            raise SettingError(str(error), "also", kind) from None
        fixed: Any = (Literal[kind], kind)
        fields[kind] = (create_model(settings.__name__, __base__=settings, kind=fixed), ...)
    return create_model("Also", __base__=Settings, **fields)


@cache
def _model(named: tuple[tuple[str, type[BaseModel]], ...]) -> type[Config]:
    fields: dict[str, Any] = {}
    for section, settings in named:
        declared = Config.model_fields[section]
        if section == "rule":
            fields[section] = (settings, Field(description=declared.description))
        else:
            fields[section] = (settings, Field(default_factory=settings, description=declared.description))
    return create_model("Config", __base__=Config, **fields)


def read_limits(limits: Mapping[str, float], metrics: Mapping[str, Metric]) -> Limits:
    """Limits by NAME_UNIT as limits by metric.

    Raises SettingError for a limit that is no NAME_UNIT of a metric in a unit of its kind."""
    found: dict[str, float] = {}
    for limit, value in limits.items():
        name, unit = _limit(limit, metrics)
        if not value > 0 or not 0 < (most := metrics[name].limit(value, unit)) < math.inf:
            raise SettingError(f"expected a number above 0, found {value:g}", "limits", limit)
        found[name] = min(most, found.get(name, most))
    return Limits(found, metrics)


def _limit(limit: str, metrics: Mapping[str, Metric]) -> tuple[str, str]:
    """The metric and the unit that a limit names."""
    named = [name for name in metrics if f"{limit}_".startswith(f"{name}_")]
    fitting = {name: limit.removeprefix(name).removeprefix("_") for name in named}
    name = max(fitting, key=lambda each: (fitting[each] in metrics[each].limit_units, len(each)), default="")
    if not name:
        example = next((each for each, metric in metrics.items() if "ms" in metric.limit_units), "tpot")
        raise SettingError(
            f"expected NAME_UNIT of {', '.join(metrics)} (such as {example}_ms; "
            f"latency.workloads defines workloads){nearest(limit, _keys(metrics))}",
            "limits",
            limit,
        )
    unit = fitting[name]
    if unit not in metrics[name].limit_units:
        kind = f"in {metrics[name].unit.name}" if metrics[name].unit.name else "a number"
        known = ", ".join(_keys({name: metrics[name]}))
        raise SettingError(f"limits {name}, which is {kind}: expected {known}", "limits", limit)
    return name, unit


def _keys(metrics: Mapping[str, Metric]) -> list[str]:
    """What `limits` may name: metrics with their units."""
    return [f"{name}_{unit}" if unit else name for name, metric in metrics.items() for unit in metric.limit_units]


def load_config(path: Path, assignments: Sequence[str] = ()) -> tuple[Config, YamlFile]:
    """The config in a file, with `--set` assignments applied and local paths made absolute. Raises ValueError naming
    file, line and key."""
    file = read_yaml(path)
    for assignment in assignments:
        file.set(assignment)
    return read_config(file), file


def read_config(file: YamlFile) -> Config:
    """The config in a file that was read, with local paths made absolute, in the file's values too. Raises ValueError
    naming file, line and key."""
    try:
        model = model_for(file.values)
    except SettingError as error:
        raise ValueError(file.complaint([*map(str, error.place)], error.text)) from None
    config = file.validate(model)
    anchored = {
        "proxy": config.proxy.anchored(),
        "also": config.also.model_copy(update={name: each.anchored() for name, each in config.others.items()}),
        "latency": config.latency.anchored(),
        "storage": _anchored(config.storage),
    }
    found = config.model_copy(update=anchored)
    before, after = config.model_dump(mode="json"), found.model_dump(mode="json")
    for section in ("proxy", "also", "latency"):
        changed = {key: value for key, value in after[section].items() if value != before[section][key]}
        if changed:
            file.values[section] = {**file.values.get(section, {}), **changed}
    if found.storage != config.storage:
        file.values["storage"] = found.storage
    return found


def _anchored(storage: str | None) -> str | None:
    """The same with the path of an SQLite file made absolute."""
    file = (storage or "").removeprefix(_SQLITE)
    return storage if file in ("", storage) else f"{_SQLITE}{Path(file).absolute()}"
