"""How recipes order those architectures that all of them have trained:

    python experiments/fidelity/paired.py STUDY 'twin 4' 'twin 8'      # STUDY: a folder with config.yaml

Prints the rank correlation with the long order, of the losses and of the losses corrected for size, for these recipes
and the reference's.
"""

import sys
from pathlib import Path

from nfsearch.proxies.size import sized
from nfsearch.studies.agreement import spearman
from nfsearch.studies.config import load_study
from nfsearch.studies.draw import read_architectures
from nfsearch.studies.journal import read
from nfsearch.studies.predictors import by_seed, truth_of
from nfsearch.studies.results import results


def main(folder: Path, recipes: list[str]) -> None:
    study = load_study(folder / "config.yaml").study
    frame = results(read_architectures(folder), read(folder))
    truth = truth_of(frame, study.reference.recipe, study.reference.tokens)
    losses = {
        (name, tokens): by_seed(frame, name, tokens)[0].dropna()
        for name in (study.reference.recipe, *recipes)
        for tokens in study.recipes[name].budgets
    }
    shared = sorted(set(truth.order.index).intersection(*(each.index for each in losses.values())))
    order, parameters = truth.order[shared], truth.about.loc[shared, "non_embedding_parameters"]
    print(f"{len(shared)} architectures; by non-embedding parameters, most first: {spearman(-parameters, order)}")
    for (name, tokens), loss in losses.items():
        corrected = sized(loss[shared], parameters, study.recipes[name].size_weight)
        print(f"{name}, {tokens:,} tokens: loss {spearman(loss[shared], order)}, sized {spearman(corrected, order)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
