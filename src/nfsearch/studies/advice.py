"""What a fidelity study advises: which budget to use, how good the config's own proxy is, and what to beware of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from nfsearch.proxies.settings import LOSS, SIZED_LOSS
from nfsearch.report.favourites import FAVOURED
from nfsearch.studies.agreement import Interval, Regret
from nfsearch.studies.config import StudyConfig
from nfsearch.studies.predictors import Judged, Truth, by_seed, favours
from nfsearch.studies.size import wanted_weight
from nfsearch.support.terminal import duration

METRICS = {"loss": LOSS.name, "sized": SIZED_LOSS.name}  # what kinds of predictors are called in a run
TARGET = 0.85  # the rank correlation from which an order is believed
CLOSE = 2.0  # seed deviations from the true best: as far as a first choice may end that a seed could explain
FEW = 10  # architectures; of fewer no order is believed
_MOST = 0.9  # of the architectures that any predictor scored


def chosen(found: Sequence[Judged], noise: float | None) -> Judged:
    """The cheapest of what trains that orders well and whose first choice is close to the true best, a loss before what
    is made of losses; where none is, the cheapest that orders well; else the one that comes nearest to it. What scored
    much fewer architectures than others does not count. Raises ValueError where nothing that trains was judged."""
    trained = [each for each in found if each.predictor.kind != "free"]
    if not trained:
        raise ValueError("no loss but the reference's is known of enough architectures: nothing can be compared yet")
    most = max(each.architectures for each in trained)
    able = [each for each in trained if each.architectures >= _MOST * most]
    good = [each for each in able if each.spearman.value >= TARGET]
    close = [each for each in good if _close(each.regret_first, noise)]
    return min(close or good, key=lambda each: (each.predictor.seconds, each.predictor.kind != "loss"), default=able[0])


def own(found: Sequence[Judged], config: StudyConfig) -> Judged | None:
    """What the config's `proxy:` and `objectives:` say a search would rank by, where a recipe of the study is that."""
    proxy, ranks_by = config.run.proxy.model_dump(), config.run.objective_names[0]
    for each in found:
        one = each.predictor
        if METRICS.get(one.kind) == ranks_by:
            recipe = config.study.recipes[one.recipe]
            if recipe.tokens == one.tokens and recipe.model_dump(exclude={"budgets"}) == proxy:
                return each
    return None


def sentences(
    best: Judged, proxy: Judged | None, noise: float | None, config: StudyConfig, frame: pd.DataFrame, truth: Truth
) -> list[str]:
    """Which budget to use, and what to beware of; the same of the config's proxy, where that is another."""
    agrees = f"Spearman {best.spearman} with the long order over {best.architectures} architectures"
    if best.architectures < FEW:
        found = [
            f"{best.architectures} architectures are too few to advise a budget. So far {_named(best)} has {agrees}."
        ]
    elif best.spearman.value >= TARGET:
        close = _close(best.regret_first, noise)
        within = f" with first choices, of all and of half, within {CLOSE:g} seed deviations of the true best"
        too = within if close else ""
        found = [f"Use this budget: {_named(best)}. {agrees}; it is the cheapest that reaches {TARGET}{too}."]
    else:
        found = [f"No budget reaches a Spearman of {TARGET}. The nearest is {_named(best)}: {agrees}."]
    found += _qualified(best, noise, config, frame, truth)
    if proxy is best:
        found.append("That is the proxy of this study's config.")
    elif proxy:
        agrees = f"Spearman {proxy.spearman} over {proxy.architectures} architectures"
        found += ["", f"The proxy of this study's config is {_named(proxy)}: {agrees}."]
        found += _qualified(proxy, noise, config, frame, truth)
    return found


def _named(judged: Judged) -> str:
    one = judged.predictor
    return f"{one.name} at {millions(one.tokens)} tokens ({duration(one.seconds)} a candidate, the median)"


def _qualified(
    judged: Judged, noise: float | None, config: StudyConfig, frame: pd.DataFrame, truth: Truth
) -> list[str]:
    """What its choices cost, and what there is to beware of."""
    first, three = judged.regret_first, judged.regret_three
    found = [
        f"Its first choice is {_nats(first.of_all, noise)} worse than the true best, the best of its first three "
        f"{_nats(three.of_all, noise)}; among half of the architectures, the mean over random halves, "
        f"{_nats(first.of_half, noise)} and {_nats(three.of_half, noise)}."
    ]
    if judged.spearman.low < TARGET <= judged.spearman.value:
        found.append(f"The interval reaches below {TARGET}: that it gets there may be luck.")
    return [*found, *_beware(favours(judged.predictor, truth)), *_said_of_size(judged, config, frame, truth)]


def _beware(biased: Mapping[str, Interval]) -> list[str]:
    found = []
    for name, error in biased.items():
        if abs(error.value) > FAVOURED:
            side = "too high" if error.value < 0 else "too low"
            sure = "" if error.low > 0 or error.high < 0 else ", though the interval holds 0"
            found.append(f"Beware: it places {name} {abs(error.value):.0%} of the list {side}{sure}.")
    return found


def _said_of_size(judged: Judged, config: StudyConfig, frame: pd.DataFrame, truth: Truth) -> list[str]:
    """By how much the loss was corrected for size, where it was, and which correction these architectures want."""
    one = judged.predictor
    if one.kind != "sized":
        return []
    weight, losses = config.study.recipes[one.recipe].size_weight, by_seed(frame, one.recipe, one.tokens).iloc[:, 0]
    wanted = wanted_weight(losses, truth.about["non_embedding_parameters"], truth.order)
    fitted = "" if wanted is None else f"; fitted to these architectures it is {wanted:.2f}"
    return [f"Its size_weight is {weight:g}{fitted}."]


def _close(regret: Regret, noise: float | None) -> bool:
    """Whether a choice is as good as the true best, as far as seeds tell."""
    return noise is not None and max(regret.of_all, regret.of_half) <= CLOSE * noise


def _nats(nats: float, noise: float | None) -> str:
    return f"{nats:.4f} nats" + (f" ({nats / noise:.1f} seed deviations)" if noise else "")


def millions(count: float) -> str:
    """A number of tokens or parameters."""
    if count < 1e5:
        return f"{count:,.0f}"
    return f"{count / 1e6:.3g}M"
