"""How well the norm of the gradient before any training orders the architectures of the study:

    python experiments/fidelity/gradient_norm.py STUDY      # a folder with the study and its config.yaml

It takes two minutes on two cores. By the proxy `zero-cost`, on random tokens; prints the rank correlation of the larger
norm first, and of the smaller.
"""

import sys
from pathlib import Path

import numpy as np

from nfsearch.proxies import Job
from nfsearch.proxies.zero_cost import GRADIENT, ZeroCostProxy, ZeroCostSettings
from nfsearch.studies.agreement import spearman
from nfsearch.studies.config import load_study
from nfsearch.studies.draw import read_architectures
from nfsearch.studies.journal import read
from nfsearch.studies.predictors import truth_of
from nfsearch.studies.results import results
from nfsearch.support.terminal import steps


def main(folder: Path) -> None:
    drawn, reference = read_architectures(folder), load_study(folder / "config.yaml").study.reference
    long = truth_of(results(drawn, read(folder)), reference.recipe, reference.tokens).order
    proxy = ZeroCostProxy(ZeroCostSettings(batch=2), "cpu")
    proxy.start()
    norms = []
    with steps("gradients") as step:
        for done, number in enumerate(long.index, start=1):
            job = Job(drawn[number].architecture, proxy.fidelity, seed=0)
            norms.append(proxy.evaluate(job, lambda *_: None).metrics[GRADIENT.name].value)
            step(done, len(long))
    print(f"{len(long)} architectures, largest norm first: Spearman {spearman(-np.array(norms), long.to_numpy(float))}")
    print(f"smallest norm first: Spearman {spearman(np.array(norms), long.to_numpy(float))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
