"""Runs every line of README.md as a newcomer would: in a fresh clone of what is committed, in a fresh environment, and
then in an empty folder. After `nfsearch init` the config is made small, as in the suite; what make runs is not. Takes
ten minutes of two cores, and what pip downloads.

    python -m tests.readme

The test suite plays the same lines in a minute, with the packages that it has itself (tests/nfsearch/test_package.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from tests.readme import ROOT, Step, as_json, shortened, steps

PLAY = (Path(__file__).parent / "play.py").read_text(encoding="utf-8")


def main() -> int:
    """The exit status: 1 if a line failed."""
    with tempfile.TemporaryDirectory(prefix="nfsearch-readme-") as folder:
        root = Path(folder)
        clone, elsewhere = root / "clone", root / "elsewhere"
        subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
        elsewhere.mkdir()
        venv.create(root / "env", with_pip=True)
        lines = [*shortened(steps((clone / "README.md").read_text(encoding="utf-8")))]
        lines = [step for step in lines if not (step.installs and step.kind == "named")]  # again, of what a block holds
        lines.sort(
            key=lambda step: not step.installs
        )  # a sentence may name a command before the page says how to install
        failed = [play(step, clone, clone) for step in lines].count(False)
        failed += [play(step, elsewhere, clone) for step in lines if not step.installs].count(False)
    print(f"{failed} lines failed" if failed else "Every line works")
    return 1 if failed else 0


def play(step: Step, place: Path, clone: Path) -> bool:
    """Whether it worked; tells it."""
    begun = time.monotonic()
    done = subprocess.run(
        command(step, clone),
        cwd=place,
        env=environment(clone.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    works = done.returncode == 0 and (step.output is None or done.stdout == step.output)
    print(
        f"{'ok' if works else 'FAILED':6} {time.monotonic() - begun:6.1f} s  {place.name:9}  line {step.line}: ", end=""
    )
    print(step.text.partition("\n")[0], flush=True)
    if not works:
        print(f"exit status {done.returncode}\n{done.stdout[-4000:]}", flush=True)
    return works


def command(step: Step, clone: Path) -> list[str | Path]:
    """What runs the step; or, where that needs a GPU or is not whole, what parses it. The suite is only looked for."""
    if step.kind in ("yaml", "named") or step.needs_gpu:
        plan = clone.parent / "step.json"
        plan.write_text(json.dumps([as_json(step)]))
        return ["python", "-c", PLAY, clone, plan]
    if step.kind == "python":
        return ["python", "-c", step.text]
    return ["bash", "-c", "make --dry-run test" if step.text == "make test" else step.text]


def environment(root: Path) -> dict[str, str]:
    """As after `. env/bin/activate`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    path = f"{root / 'env' / 'bin'}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "VIRTUAL_ENV": str(root / "env"), "NFSEARCH_CACHE": str(root / "cache")}


if __name__ == "__main__":
    sys.exit(main())
