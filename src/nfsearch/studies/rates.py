"""Which learning rate is best for each architecture, and whether their order depends on it: of the recipes of a study
that differ from the reference's in their rate alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from nfsearch.proxies.size import sized
from nfsearch.studies.agreement import kendall
from nfsearch.studies.config import StudySettings
from nfsearch.studies.predictors import FEWEST, by_seed

NEAR = 2.0  # times the rule's rate, or a part of it: as near as a best rate should lie


@dataclass(frozen=True)
class Rates:
    """Losses of the first seed, [architectures by number, rates rising], after so many tokens, and those losses
    corrected for size; `rule` is the rate of the reference's recipe."""

    losses: pd.DataFrame
    sized: pd.DataFrame
    tokens: int
    rule: float

    @property
    def best(self) -> pd.Series:
        """The rate with the lowest loss, by architecture."""
        return self.losses.idxmin(axis=1)

    def sentences(self) -> list[str]:
        """What there is to say."""
        best = self.best
        counts = ", ".join(f"{rate:g} for {(best == rate).sum()}" for rate in self.losses.columns)
        near = best.between(self.rule / NEAR, self.rule * NEAR).sum()
        found = [
            f"Best rate by architecture, at {self.tokens:,} tokens: {counts} of {len(best)}; within {NEAR:g} times the "
            f"rule's {self.rule:g} for {near} of {len(best)}."
        ]
        for edge, side in ((self.losses.columns[0], "smallest"), (self.losses.columns[-1], "largest")):
            if ends := (best == edge).sum():
                found.append(f"For {ends} the best is the {side} rate that was tried: theirs may lie beyond.")
        return found

    def table(self, about: pd.DataFrame) -> pd.DataFrame:
        """A row for each architecture: what it is, its best rate, and the loss at each rate in nats."""
        found = about.loc[self.losses.index, ["width", "depth", "notation"]].assign(best_rate=self.best)
        return found.join(self.losses.rename(columns=lambda rate: f"loss_at_{rate:g}"))


def agreements(losses: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau between the orders of architectures at each rate and at each other, as text."""

    def cell(one: float, other: float) -> str:
        return "" if one == other else str(kendall(losses[one].to_numpy(float), losses[other].to_numpy(float)))

    rates = [float(rate) for rate in losses.columns]
    return pd.DataFrame([{"": f"{one:g}", **{f"{other:g}": cell(one, other) for other in rates}} for one in rates])


def rates_of(frame: pd.DataFrame, study: StudySettings) -> Rates | None:
    """Those of a study, at the largest budget that all of them have; None where there are fewer than three, or fewer
    architectures that have all losses."""
    reference = study.recipes[study.reference.recipe]
    alike = [name for name, recipe in study.recipes.items() if _but_the_rate(recipe) == _but_the_rate(reference)]
    names = {getattr(study.recipes[name], "learning_rate", 0.0): name for name in alike}
    shared = set.intersection(*(set(study.budgets(name)) for name in names.values()))
    if len(names) < 3 or not shared:
        return None
    losses = {rate: by_seed(frame, names[rate], max(shared)) for rate in sorted(names)}
    if any(each.empty for each in losses.values()):
        return None
    found = pd.DataFrame({rate: each.iloc[:, 0] for rate, each in losses.items()}).dropna()
    found = found.loc[found.min(axis=1) < math.inf]  # one that diverges at every rate has no best one
    if len(found) < FEWEST:
        return None
    sizes = frame.drop_duplicates("number").set_index("number")["non_embedding_parameters"]
    corrected = found.apply(sized, args=(sizes.loc[found.index], getattr(reference, "size_weight", 0.0)))
    return Rates(found, corrected, max(shared), reference.learning_rate)


def _but_the_rate(recipe: object) -> dict[str, object]:
    values: dict[str, object] = recipe.model_dump(exclude={"budgets", "learning_rate"})  # type: ignore[attr-defined]
    return values
