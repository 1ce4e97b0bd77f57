"""One case: a file is changed, commands read it, and how they end is judged."""

from __future__ import annotations

import contextlib
import io
import random
import shutil
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

from nfsearch.cli.main import main
from tests.fuzz.targets import Command, Target


def make(target: Target, seed: str, folder: Path) -> Path:
    """Writes the changed file of a case, which hangs on nothing but the seed, into a folder that is made anew."""
    rng = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    if target.beside:
        shutil.copytree(target.beside, folder)
    folder.mkdir(parents=True, exist_ok=True)
    sample = rng.choice(target.samples)
    content = sample.read_bytes()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        try:
            content = rng.choice(target.changes)(rng, content)
        except Exception:
            break  # an earlier change left nothing of the structure
    path = folder / sample.name
    path.write_bytes(content)
    return path


def judge(target: Target, path: Path) -> str | None:
    """What is wrong with how the commands ended; None where nothing is."""
    for command in target.commands:
        before = _files(path.parent)
        status, error = _run(command, path)
        if error:
            return error
        if status not in (0, 1, 2):
            return f"exit status {status}"
        if status == 2 and _files(path.parent) != before:
            return "exit status 2, and something was written"
    return None


def _run(command: Command, path: Path) -> tuple[object, str | None]:
    """The exit status, or the last lines of a traceback."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            arguments = command(path)
            if arguments is not None:
                _main(arguments)
    except SystemExit as end:
        return end.code, "Traceback in the output" if "Traceback" in err.getvalue() else None
    except (ValueError, OSError) as error:
        return 2, traceback.format_exc() if isinstance(error, UnicodeError) else None
    except BaseException:
        return None, traceback.format_exc()
    return 0, None


def _main(arguments: Sequence[str]) -> None:
    sys.argv = ["nfsearch", *arguments]
    main()


def _files(folder: Path) -> Mapping[Path, tuple[int, int]]:
    stats = ((path, path.stat()) for path in folder.rglob("*") if path.is_file())
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats}
