"""The figures of README.md that are not in the study's report:

    python experiments/fidelity/figures.py STUDY      # a folder with the study and its config.yaml

Orders of the architectures that were trained after the weight of `sized_loss` was fixed, by the 27 before them; orders
by narrowed twins, of the 18 that had them first and of the others; the same by the losses at half the reference's
tokens; which weight fits; what counting the embedding changes; what knowing the share of attention would add; and how
far seeds lie apart.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.size import sized
from nfsearch.studies.agreement import regret, spearman
from nfsearch.studies.config import load_study
from nfsearch.studies.draw import read_architectures
from nfsearch.studies.journal import read
from nfsearch.studies.predictors import Truth, by_seed, of_operators, predictors, truth_of
from nfsearch.studies.results import results
from nfsearch.studies.size import wanted_weight

BEFORE = {*range(26), 28}  # by their numbers in the study
TWINS = ("twin 2", "twin 4", "twin 8")
TWINNED = {*range(6), *range(8, 14), *range(16, 22)}  # the first that had all twins
SHORTER = 48_000_000  # tokens
WEIGHT, DEFAULT = TrainingSettings().size_weight, TrainingSettings().tokens


def main(folder: Path) -> None:
    study = load_study(folder / "config.yaml").study
    frame, reference = results(read_architectures(folder), read(folder)), study.reference
    truth = truth_of(frame, reference.recipe, reference.tokens)
    short = {
        (name, tokens): by_seed(frame, name, tokens)
        for name in (reference.recipe, *TWINS)
        for tokens in study.recipes[name].budgets
    }
    whole = {key: losses for key, losses in short.items() if key[0] == reference.recipe}
    held = [number for number in truth.order.index if number not in BEFORE]
    orders(f"{len(held)} trained after the weight was fixed", whole, truth, held)
    twins = {key: losses for key, losses in short.items() if key[0] in TWINS}
    orders(f"{len(TWINNED)} that had twins first", short, truth, sorted(TWINNED))
    others = sorted(set(truth.order.index) - TWINNED)
    orders(f"{len(others)} that had them later", twins, truth, others)
    shorter = truth_of(frame, reference.recipe, SHORTER)
    print(f"By the losses at {SHORTER:,} tokens:")
    orders(
        "all", {key: losses for key, losses in short.items() if key[1] < SHORTER}, shorter, list(shorter.order.index)
    )
    first_choices("non_embedding_parameters", whole, shorter)
    for of in (shorter, truth):
        default = next(
            each
            for each in predictors(frame, of, {}, {reference.recipe: WEIGHT})
            if (each.kind, each.recipe, each.tokens) == ("sized", reference.recipe, DEFAULT)
        )
        errors = ", ".join(f"{name} {error}" for name, error in of_operators(default, of).items())
        print(f"  the default's mean rank errors by the losses at {of.tokens:,}: {errors}")
    print(f"By the losses at {reference.tokens:,} tokens:")
    for (_, tokens), losses in whole.items():
        fitted = wanted_weight(losses[0], truth.about["non_embedding_parameters"], truth.order)
        print(f"{tokens:,} tokens: fitted to all, the weight is {fitted:.2f}")
    for size in ("non_embedding_parameters", "parameters"):
        first_choices(size, whole, truth)
    left_out(whole[reference.recipe, DEFAULT], truth)
    for (_, tokens), losses in {**whole, ("", reference.tokens): truth.losses}.items():
        spread = losses.std(axis=1).dropna()
        most = truth.about.loc[spread.idxmax()]
        told = f"{most['notation']} @ {most['width']}: {losses.loc[spread.idxmax()].round(3).tolist()}"
        print(
            f"{tokens:,} tokens: seeds of {len(spread)} lie {spread.median():.4f} apart (standard deviation, median), "
            f"{spread.max():.4f} in {told}"
        )
        if tokens == DEFAULT:
            curves(frame[(frame["number"] == spread.idxmax()) & (frame["tokens"] == SHORTER)])


def orders(what: str, short: dict[tuple[str, int], pd.DataFrame], truth: Truth, among: Sequence[int]) -> None:
    """Of the first seed's losses."""
    order, parameters = truth.order[among], truth.about.loc[among, "non_embedding_parameters"]
    print(f"{what}: by non-embedding parameters, most first, {spearman(-parameters, order)}")
    for (name, tokens), losses in short.items():
        loss = losses.loc[among, 0]
        corrected = spearman(sized(loss, parameters, WEIGHT), order)
        print(f"  {name}, {tokens:,}: loss {spearman(loss, order)}, sized {corrected}")


def first_choices(size: str, short: dict[tuple[str, int], pd.DataFrame], truth: Truth) -> None:
    """Of the means over seeds, as in the report."""
    for (_, tokens), losses in short.items():
        mean = sized(losses.mean(axis=1), truth.about[size], WEIGHT)[truth.order.index]
        worse, found = truth.order[mean.idxmin()] - truth.order.min(), truth.about.loc[mean.idxmin()]
        print(
            f"sized by {size}, {tokens:,} tokens: {spearman(mean, truth.order)}, the first choice {worse:.3f} nats "
            f"worse than the best: {found['notation']} @ {found['width']}, {found['parameters'] / 1e6:.0f}M"
        )


def left_out(losses: pd.DataFrame, truth: Truth) -> None:
    """Orders by what a linear fit to all other architectures says of each, with the share of attention among its mixers
    and without."""
    about = truth.about.loc[truth.order.index]
    size, mixers = np.log(about["non_embedding_parameters"]), about["depth"] - about["layers_F"]
    known = {
        "loss and size": [losses[0], size],
        "loss, size and share of attention": [losses[0], size, about["layers_A"] / mixers],
    }
    for name, columns in known.items():
        inputs = np.column_stack([np.ones(len(about)), *(column[about.index] for column in columns)])
        said = np.empty(len(about))
        for i in range(len(about)):
            others = np.arange(len(about)) != i
            said[i] = inputs[i] @ np.linalg.lstsq(inputs[others], truth.order.to_numpy()[others])[0]
        order = truth.order.to_numpy()
        print(f"fitted to the others by {name}: {spearman(said, order)}, {regret(said, order, 1)}")


def curves(seeds: pd.DataFrame) -> None:
    """How far the training losses of the seeds lie above the lowest, by millions of tokens."""
    at = np.array([4e6, 6e6, 8e6, 10e6, 12e6, 16e6, 24e6, 48e6])
    losses = np.array([np.interp(at, row.curve_tokens, row.curve_losses) for row in seeds.itertuples()])
    for seed, above in zip(seeds["seed"], losses - losses.min(axis=0), strict=True):
        print(f"  seed {seed}: " + ", ".join(f"{x / 1e6:g}M +{y:.3f}" for x, y in zip(at, above, strict=True)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
