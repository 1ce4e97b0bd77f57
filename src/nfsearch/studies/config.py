"""The config of a fidelity study: that of a run, with a section `study:`.

study:
  architectures: 48
  recipes:
    default: {budgets: [5M, 10M]}                           # as `proxy:` says
    eager: {budgets: [10M], learning_rate: 1e-2, batch: 8}  # what differs from `proxy:`
  reference: {recipe: default, tokens: 80M}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from nfsearch.proxies import PROXIES, Proxy, ProxySettings
from nfsearch.proxies.settings import RisingTokens, Tokens
from nfsearch.run.config import Config, read_config
from nfsearch.run.tables import training_kind
from nfsearch.run.yaml_file import YamlFile, read_yaml
from nfsearch.support.settings import SettingError, Settings

MOST = 10_000  # architectures
_Count = Annotated[int, Field(gt=0, le=MOST)]
_Number = Annotated[int, Field(ge=0, lt=MOST)]  # of an architecture
_SHARED = {"kind", "data", "tokenizer", "validation_tokens"}  # what losses that are compared have in common


class Recipe(Settings):
    """What a recipe has beside the settings of the proxy; `tokens` among those is what a warm-up is a share of."""

    budgets: RisingTokens = Field(min_length=1, description="tokens at which the loss is measured, rising")


class Reference(Settings):
    """The long training whose order is taken to be the true one."""

    recipe: str = Field(description="the name of a recipe")
    tokens: Tokens = Field(description="tokens of the long training")


class MoreSeeds(Settings):
    """Trainings that tell how much a seed decides."""

    architectures: _Count | Annotated[list[_Number], Field(min_length=1)] = Field(
        default=12, description="how many, the first ones of the study; or a list of their numbers, which begin at 0"
    )
    seeds: int = Field(default=3, gt=0, le=1000, description="seeds of each")

    @property
    def numbers(self) -> Sequence[int]:
        """Of the architectures."""
        return range(self.architectures) if isinstance(self.architectures, int) else self.architectures


class StudySettings(Settings):
    """The `study:` section. `study_model` gives the model with the settings of a kind of proxy in its recipes."""

    architectures: Annotated[int, Field(gt=2, le=MOST)] | Literal["all"] = Field(
        default=48, description="how many are drawn from the space; all: every member, whatever its latency"
    )
    within: float = Field(default=0.05, gt=0, le=1, description="how far below the limit a latency may lie, as a share")
    depths: tuple[int, int] | None = Field(
        default=None, description="fewest and most operators of an architecture; all depths occur alike"
    )
    seed: int = Field(default=0, description="of the draw")
    seeds: int = Field(default=1, gt=0, le=1000, description="seeds of each architecture")
    more_seeds: MoreSeeds | None = Field(default=None, description="more seeds of some of the architectures")
    recipes: dict[str, Any] = Field(min_length=1, description="by name: what differs from `proxy:`, and budgets")
    reference: Reference = Field(description="the long training")

    @model_validator(mode="after")
    def _possible(self) -> StudySettings:
        if self.depths and not 0 < self.depths[0] <= self.depths[1]:
            raise SettingError(f"expected the fewest and the most operators, found {list(self.depths)}", "depths")
        if self.more_seeds and isinstance(self.architectures, int):
            listed = self.more_seeds.architectures
            for place, number in enumerate(listed if isinstance(listed, list) else ()):
                if number >= self.architectures:
                    text = f"expected 0 to {self.architectures - 1}, the numbers of the architectures, found {number}"
                    raise SettingError(text, "more_seeds", "architectures", place)
        if self.reference.recipe not in self.recipes:
            text = f"{self.reference.recipe!r} is none of {', '.join(self.recipes)}"
            raise SettingError(text, "reference", "recipe")
        for name, recipe in self.recipes.items():
            if (warm := recipe.warmup * recipe.tokens) >= recipe.budgets[0]:
                text = (
                    f"the first one ends within the warm-up of {warm:,.0f} tokens, which is {recipe.warmup:g} (warmup) "
                    f"of {recipe.tokens:,} (tokens): set `tokens` to what a search would train on"
                )
                raise SettingError(text, "recipes", name, "budgets")
            if name == self.reference.recipe and recipe.budgets[-1] > self.reference.tokens:
                text = f"{recipe.budgets[-1]:,} tokens are more than the reference has ({self.reference.tokens:,})"
                raise SettingError(text, "recipes", name, "budgets")
        return self

    def budgets(self, name: str) -> tuple[int, ...]:
        """Those of a recipe, rising; the reference's is one of them."""
        found = set(self.recipes[name].budgets)
        if name == self.reference.recipe:
            found.add(self.reference.tokens)
        return tuple(sorted(found))

    def seeds_of(self, number: int) -> range:
        """The seeds that the architecture of this number is trained with."""
        more = self.more_seeds
        return range(max(self.seeds, more.seeds) if more and number in more.numbers else self.seeds)

    @property
    def longest(self) -> int:
        """The most tokens that anything is trained on."""
        return max(self.budgets(name)[-1] for name in self.recipes)


@dataclass(frozen=True)
class StudyConfig:
    """A run's config, the study, and the file that both were read from."""

    run: Config
    study: StudySettings
    file: YamlFile

    def proxy(self, name: str) -> Proxy:
        """What trains by a recipe. All recipes read the same tokens: as many as the longest training wants, a warm-up
        staying as long as the recipe says. Raises ValueError or OSError for settings that cannot be served."""
        recipe, longest = self.study.recipes[name], self.study.longest
        warmup = recipe.warmup * recipe.tokens / longest
        settings = recipe.model_copy(update={"tokens": longest, "warmup": warmup})
        return PROXIES.find(recipe.kind)(settings, training_kind(self.run))


def load_study(path: Path, assignments: Sequence[str] = ()) -> StudyConfig:
    """The study in a file, with `--set` assignments applied and local paths made absolute. Raises ValueError naming
    file, line and key."""
    file = read_yaml(path)
    for assignment in assignments:
        file.set(assignment)
    section = file.values.pop("study", None)
    if not isinstance(section, dict):
        raise ValueError(file.complaint(["study"], "expected keys and values" if section else "is missing"))
    run = read_config(file)
    for name in ("also", "rule"):
        if file.values.get(name):
            raise ValueError(
                file.complaint([name], "a study has no use for it: its trainings are those of its recipes")
            )
    if not {"tokens", "warmup"} <= type(run.proxy).model_fields.keys():
        raise ValueError(file.complaint(["proxy", "kind"], f"{run.proxy.kind} trains on no number of tokens"))
    every = section.get("architectures") == "all"
    if not every and not run.limit_values.most.keys() & run.latency.workloads.keys():
        text = "a study compares architectures of one latency: expected a limit on one, such as tpot_ms: 2"
        raise ValueError(file.complaint(["limits"], text))
    values = file.values
    try:
        file.values = {"study": _merged(section, values.get("proxy", {}))}
    except SettingError as error:
        raise ValueError(file.complaint([*map(str, error.place)], error.text)) from None
    study = file.validate(_study_model(type(run.proxy))).study
    file.values = {**values, "study": section}
    return StudyConfig(run, study, file)


def _merged(section: dict[str, Any], proxy: Mapping[str, Any]) -> dict[str, Any]:
    """The study's values with recipes that hold all that `proxy:` says and they do not."""
    recipes = section.get("recipes")
    if not isinstance(recipes, dict):
        return section
    for name, own in recipes.items():
        for key in _SHARED.intersection(own if isinstance(own, dict) else ()):
            raise SettingError("all recipes have that of `proxy:`", "study", "recipes", name, key)
    whole = {name: {**proxy, **own} if isinstance(own, dict) else own for name, own in recipes.items()}
    return {**section, "recipes": whole}


def _study_model(settings: type[ProxySettings]) -> Any:
    recipe = create_model("Recipe", __base__=(Recipe, settings))
    declared = StudySettings.model_fields["recipes"]
    study = create_model("Study", __base__=StudySettings, recipes=(dict[str, recipe], declared))
    return create_model("Section", __base__=Settings, study=(study, ...))


def require_same(before: StudyConfig, now: StudyConfig, folder: Path) -> None:
    """Raises ValueError where what was begun in `folder` is not what a config says now. Recipes, budgets and seeds may
    be added to a study; what a recipe's name stands for, and how architectures are drawn, stays."""
    changed = [name for name in ("space", "limits") if _differ(before.run, now.run, name)]
    timed = ("device", "dtype", "workloads")
    changed += [f"latency.{name}" for name in timed if _differ(before.run.latency, now.run.latency, name)]
    drawn = ("architectures", "within", "depths", "seed", "reference")
    changed += [f"study.{name}" for name in drawn if _differ(before.study, now.study, name)]
    for name, recipe in now.study.recipes.items():
        if name in before.study.recipes and _values(recipe) != _values(before.study.recipes[name]):
            changed.append(f"study.recipes.{name}")
    if changed:
        raise ValueError(f"{folder} holds a study with other {', '.join(changed)}: write this one elsewhere (-o)")


def _differ(one: Settings, other: Settings, name: str) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def _values(recipe: Any) -> dict[str, Any]:
    """What decides its losses."""
    values: dict[str, Any] = recipe.model_dump(mode="json", exclude={"budgets", *_SHARED})
    return values
