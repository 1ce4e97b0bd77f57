"""How `sized_loss` orders the architectures that were trained after its weight was fixed, by the 27 before them:

    python experiments/fidelity/held_out.py STUDY      # a folder with the study and its config.yaml

Prints the rank correlation with the long order at each budget, that of the loss alone, and that of the parameters.
"""

import sys
from pathlib import Path

from nfsearch.proxies.settings import TrainingSettings
from nfsearch.proxies.size import sized
from nfsearch.studies.agreement import spearman
from nfsearch.studies.config import load_study
from nfsearch.studies.draw import read_architectures
from nfsearch.studies.journal import read
from nfsearch.studies.predictors import by_seed, truth_of
from nfsearch.studies.results import results

BEFORE = {*range(26), 28}  # by their numbers in the study


def main(folder: Path) -> None:
    study = load_study(folder / "config.yaml").study
    frame = results(read_architectures(folder), read(folder))
    truth = truth_of(frame, study.reference.recipe, study.reference.tokens)
    held = [number for number in truth.order.index if number not in BEFORE]
    order, parameters = truth.order[held], truth.about.loc[held, "non_embedding_parameters"]
    print(f"{len(held)} architectures; by non-embedding parameters, most first: {spearman(-parameters, order)}")
    for tokens in study.recipes[study.reference.recipe].budgets:
        loss = by_seed(frame, study.reference.recipe, tokens)[0][held]
        corrected = sized(loss, parameters, TrainingSettings().size_weight)
        print(f"{tokens:,} tokens: sized_loss {spearman(corrected, order)}, loss {spearman(loss, order)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
