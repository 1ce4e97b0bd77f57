"""`python -m tests.fuzz --cases 5000 --seed 0`: exit status 1 if anything was found."""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz import fuzzer, targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", metavar="SEED", help="make one case again, such as 0/17, and keep its files")
    chosen = parser.parse_args()
    if chosen.only:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        targets.prepare(folder)
        print(fuzzer.judged(chosen.only, folder, folder / "case") or "nothing is wrong", folder / "case", sep="\n")
        return 0
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for number, finding in enumerate(fuzzer.run(chosen.cases, chosen.seed, Path(folder), chosen.workers), start=1):
            if finding:
                found[finding.what.strip().splitlines()[-1]] += 1
                print(f"--- {finding.seed} ({finding.target})\n{finding.what}", flush=True)
            if number % 500 == 0:
                print(f"{number} cases, {found.total()} findings", flush=True)
    for what, times in found.most_common():
        print(f"{times:5} {what}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
