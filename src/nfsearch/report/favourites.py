"""Which operators a proxy places too high or too low: what the study of experiments/fidelity found comes with nfsearch,
in favourites.json, as `nfsearch study report` writes it, and the report of a run says it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from pydantic import Field, TypeAdapter

from nfsearch.proxies import Fidelity
from nfsearch.report.confirmation import Part

FAVOURITES = "favourites.json"
FAVOURED = 0.1  # of the list: a mean rank error beyond it is told
FEWEST = 20  # architectures of a study from which anything is told


class Bias(Part):
    """The mean rank error of an operator with the ends of its 95 % interval, as shares of the list; below 0 the proxy
    favours it."""

    error: float
    low: float
    high: float

    def words(self) -> str:
        """Such as "12% of the list too low (95 %: 3% to 20%)"."""
        side, low, high = (-1, -self.high, -self.low) if self.error < 0 else (1, self.low, self.high)
        return (
            f"{side * self.error:.0%} of the list too {'high' if side < 0 else 'low'} (95 %: {low:.0%} to {high:.0%})"
        )


class Favourites(Part):
    """What a study found of a proxy: its ranks beside those of a long training of the same architectures."""

    metric: str = Field(default="loss", description="the metric by which the proxy orders, such as sized_loss")
    fidelity: Fidelity = Field(description="of the proxy that was studied, with the study's own data")
    size_weight: float | None = Field(default=None, description="by which a sized loss was corrected; none, a loss")
    tokens: int = Field(description="training tokens of the long training")
    architectures: int
    operators: dict[str, Bias]

    def told(self) -> list[str]:
        """The operators with an error beyond what is told, and beyond chance, each in words."""
        if self.architectures < FEWEST:
            return []
        return [
            f"{name} {each.words()}"
            for name, each in self.operators.items()
            if abs(each.error) > FAVOURED and each.low * each.high > 0
        ]


def sentence(found: Favourites | None) -> str:
    """What a report says of it."""
    if found is None:
        return "Whether this proxy favours some operators was not studied; `nfsearch study fidelity` would tell."
    if found.architectures < FEWEST:
        return (
            f"Whether this proxy favours some operators is not known yet: {found.architectures} architectures have "
            f"been studied, and {FEWEST} are the fewest that tell."
        )
    of = f"in a study of {found.architectures} architectures against {found.tokens:,} tokens of training"
    if not found.told():
        return f"The proxy places no operator more than {FAVOURED:.0%} of the list too high or too low, {of}."
    return f"Beware: the proxy favours some operators: it places {', '.join(found.told())}, {of}."


def studied(objectives: Sequence[str], fidelity: Fidelity, size_weight: float | None) -> Favourites | None:
    """What is known of a proxy that measures with a fidelity, whatever its data, and corrects for size by this weight,
    where one of the objectives is a metric that was studied, the first that is; else None."""
    key = _settings(fidelity)
    fit = {each.metric: each for each in _shipped() if _settings(each.fidelity) == key}
    known = (fit[name] for name in objectives if name in fit)
    return next((each for each in known if each.size_weight in (None, size_weight)), None)


def _settings(fidelity: Fidelity) -> Fidelity:
    """What proxies have in common that order architectures alike: all but the data and, behind a semicolon, what other
    proxies do beside."""
    return replace(fidelity, data="", recipe=fidelity.recipe.split("; ")[0])


FILE = TypeAdapter(list[Favourites])


@cache
def _shipped() -> list[Favourites]:
    return FILE.validate_json(Path(__file__).with_name(FAVOURITES).read_bytes())
