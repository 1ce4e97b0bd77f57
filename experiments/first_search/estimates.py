"""What the table that comes with nfsearch says of the models that the search measured, whose own table was half made:

    python experiments/first_search/estimates.py

Of the candidates (results/candidates.csv) and of ten random models that the search began with (results/checked.csv).
"""

from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from nfsearch.latency_lut import Workload, load_table
from nfsearch.latency_lut.bundled import bundled_table
from nfsearch.space import Architecture

HERE, VOCAB = Path(__file__).parent / "results", 32_000


def main() -> None:
    table = load_table(bundled_table("nvidia-h200"))

    def estimated(row: pd.Series) -> float:
        model = Architecture.parse(row["notation"], width=int(row["width"]), vocab=VOCAB)
        return 1e3 * table.estimate(model, Workload(context=8192)).seconds

    found = pd.read_csv(HERE / "candidates.csv")
    measured = found["tpot_8k_ms_estimated"].notna()
    said = found["tpot_8k_ms_estimated"].where(measured, found["tpot_8k_ms"])
    now = found.apply(estimated, axis=1)
    print(f"{int(np.isclose(now, said, rtol=1e-9).sum())} of {len(found)} estimates are those of the search")
    compare("candidates", now[measured], found.loc[measured, "tpot_8k_ms"])
    checked = pd.read_csv(HERE / "checked.csv")
    compare("random models, then", checked["estimated_ms"], checked["measured_ms"])
    compare("random models, now", checked.apply(estimated, axis=1), checked["measured_ms"])


def compare(name: str, estimates: pd.Series, times: pd.Series) -> None:
    off = (estimates / times - 1).abs().mean()
    print(f"{len(times)} {name}: {off:.1%} off, Spearman {spearmanr(estimates, times).statistic:.2f}")


if __name__ == "__main__":
    main()
