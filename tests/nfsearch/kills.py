"""Runs that are killed at random moments, and then resumed by their folder alone, end as one that is left alone does.

    python -m tests.nfsearch.kills [--kills 20] [--seed 0] [--folder DIR]

A run begins to exist with its folder: one that is killed before is begun again. Kills reach all that a run does: its
start, its latency table, the table's check, the search, its report, and the finalists' confirmation.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nfsearch.search.study import load_store
from tests.nfsearch.runs import tiny_config

CONFIRM = ("--top", "2", "--seeds", "1")


def config(folder: Path) -> Path:
    """Of a run that measures a table, checks it and searches, in a quarter of a minute."""
    mixer = "A[head_dim=16] | D[head_dim=16]"
    space = {"width": 32, "where": {"mixer": mixer}, "layers": "(mixer F[ratio=2]{0..1})*{1..3}"}
    latency = {"table": "auto", "verify": 2}
    # Times are another each time that they are measured, and would choose other finalists.
    return tiny_config(folder, space=space, latency=latency, objectives=["loss"])


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "nfsearch", *map(str, arguments)]


def run(arguments: list[str], seconds: float | None = None) -> bool:
    """Whether it ended by itself, within the seconds that it is given before it is killed with all that it started."""
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return False
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}:\n{said}")
    return True


def outcome(folder: Path) -> list[tuple]:
    """What was evaluated, in order, and what came of it."""
    store = load_store(folder / "study.journal")
    found = [*store.candidates(), *store.confirmations()]
    return [(each.proposal.job.digest, each.proposal.origin, each.state, each.value("loss")) for each in found]


def stage(folder: Path) -> str:
    """What a run was doing when it was killed."""
    if not (folder / "config.yaml").exists():
        return "start"
    store = load_store(folder / "study.journal")
    if store.confirmations():
        return f"confirmation, after {len(store.confirmations())}"
    if store.meta["status"] == "complete":
        return "report or confirmation"
    if store.candidates():
        return f"search, after {len(store.candidates())}"
    if "verify" in store.meta:
        return "search, before the first"
    return "check" if "table" in store.meta else "table"


def begin(source: Path, folder: Path, seconds: float | None = None) -> bool:
    """Begins a run, or goes on with it, and confirms its finalists."""
    began = time.monotonic()
    here = (folder / "config.yaml").exists()
    arguments = command("run", "--resume", folder) if here else command("run", source, "--out", folder)
    if not run(arguments, seconds):
        return False
    left = None if seconds is None else max(seconds - (time.monotonic() - began), 0.1)
    return run(command("confirm", folder, *CONFIRM), left)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--seed", type=int, default=0, help="of the moments")
    options.add_argument("--folder", type=Path, help="where runs are made, and kept")
    given = options.parse_args()
    rng = random.Random(given.seed)
    base = given.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    base.mkdir(parents=True, exist_ok=True)
    source = config(base)
    began = time.monotonic()
    begin(source, base / "whole")
    whole, expected = time.monotonic() - began, outcome(base / "whole")
    print(f"left alone: {len(expected)} evaluations in {whole:.1f} s", flush=True)
    wrong = 0
    for kill in range(given.kills):
        folder, moment = base / f"killed-{kill}", rng.uniform(0, whole)
        while begin(source, folder, moment):  # it had ended before: the machine is less busy now
            shutil.rmtree(folder)
            moment = rng.uniform(0, moment)
        where = stage(folder)
        begin(source, folder)
        same = outcome(folder) == expected
        wrong += not same
        print(f"killed after {moment:5.1f} s ({where}): {'the same' if same else 'ANOTHER END'}", flush=True)
        if same and not given.folder:
            shutil.rmtree(folder)
    print(f"{given.kills - wrong} of {given.kills} ended as the one that was left alone")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
