"""The losses of a study by architecture and seed, and the seconds of its trainings:

python experiments/losses.py STUDY      # a folder with architectures.json and journals
"""

import sys
from pathlib import Path

import pandas as pd

from nfsearch.studies.draw import read_architectures
from nfsearch.studies.journal import read
from nfsearch.studies.results import results


def main(folder: Path) -> None:
    frame = results(read_architectures(folder), read(folder))
    frame["model"] = frame["notation"] + " @ " + frame["width"].astype(str)
    losses = frame.pivot_table(index="model", columns=["recipe", "tokens", "seed"], values="loss")
    means = losses.T.groupby(["recipe", "tokens"]).mean().T
    for model, row in losses.iterrows():
        for (recipe, tokens), mean in means.loc[model].dropna().items():
            seeds = ", ".join(f"{loss:.3f}" for loss in row[recipe, tokens].dropna())
            print(f"{model}: {recipe} at {tokens:,} tokens: {seeds}; mean {mean:.4f}")
    for (recipe, tokens), each in frame.groupby(["recipe", "tokens"]):
        seconds: pd.Series = each["seconds"]
        print(
            f"{recipe} at {tokens:,} tokens: {len(each)} trainings of {each['parameters'].min() / 1e6:.1f}M to "
            f"{each['parameters'].max() / 1e6:.1f}M parameters, {seconds.median():.1f} s each in the median, "
            f"{seconds.sum():.0f} s together, {3600 / seconds.mean():.0f} an hour"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
