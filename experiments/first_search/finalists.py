"""The three best candidates of a search and three of its middle, for a study that trains them long:

    python experiments/first_search/finalists.py RUN DIR

Prints their numbers, notations and objectives. README.md says how the study goes on from there.
"""

import json
import sys
from pathlib import Path

from nfsearch.report.result import RunResult
from nfsearch.studies.draw import ARCHITECTURES


def main(run: Path, folder: Path) -> None:
    result = RunResult.load(run / "result.json")
    metric = result.objectives[0]
    able = [each for each in result.candidates if metric in each.metrics]
    ranked = sorted(able, key=lambda each: each.metrics[metric].value)
    middle = len(ranked) // 2
    listed = []
    for each in (*ranked[:3], *ranked[middle - 1 : middle + 2]):
        times = {name: each.metrics[name].value for name in result.objectives[1:]}
        listed.append({**each.architecture, "latencies": times})
        print(each.number, each.notation, f"{each.metrics[metric].value:.4f}", times)
    folder.mkdir(parents=True)
    (folder / ARCHITECTURES).write_text(json.dumps(listed, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
