"""Plays steps of README.md one after the other in one process, in the folder where it is started.

Run as `python -c "$(cat play.py)" CLONE STEPS.json`, it finds modules where a reader finds them, and nothing of this
checkout. The first step that fails ends it.
"""

import contextlib
import io
import json
import re
import shlex
import subprocess
import sys
from importlib.metadata import metadata
from pathlib import Path

import typer
import yaml

from nfsearch.cli import main as cli
from nfsearch.run.config import load_config


def play(step):
    """What came to stdout. Raises whatever goes wrong."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        if step["kind"] == "python":
            exec(compile(step["text"], f"README.md:{step['line']}", "exec"), {"__name__": "__main__"})
        elif step["kind"] == "yaml":
            settings(step["text"])
        else:
            command(shlex.split(step["text"]), step)
    if step["output"] is not None and out.getvalue() != step["output"]:
        raise AssertionError(f"printed {out.getvalue()!r}, and README.md says {step['output']!r}")


def command(words, step):
    if step["installs"]:
        installable(words)
    elif step["needs_gpu"] or step["kind"] == "named":
        understood(words[1:], complete=step["kind"] != "named")
    elif words[0] == "nfsearch":
        run(words)
    else:
        raise ValueError(f"cannot play {words[0]}")


def run(words):
    sys.argv = words
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"exit status {end.code}") from None


def settings(text):
    """Sections of a config, in the place of those of the starter config."""
    path = Path("readme.yaml")
    run(["nfsearch", "init", "-o", str(path)])
    sections = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**sections, **yaml.safe_load(text)}))
    load_config(path)
    path.unlink()


def understood(words, complete):
    """Parses a command line and runs nothing; where a sentence names it, its arguments may be left out."""
    context, parser = None, typer.main.get_command(cli.app)
    while words and hasattr(parser, "resolve_command") and not words[0].startswith("-"):
        context = parser.make_context(parser.name, words[:1], parent=context, resilient_parsing=True)
        parser = parser.resolve_command(context, words[:1])[1]
        words = words[1:]
    # Resilient parsing makes no parameter act, such as --version, and misses none.
    parser.make_context(parser.name, words, parent=context, resilient_parsing=not complete)


def installable(words):
    """What make is asked for is in the Makefile, and what pip is asked for in nfsearch's metadata."""
    while "=" in words[0]:
        words = words[1:]
    if words[0] == "make":
        subprocess.run(["make", "--dry-run", *words[1:]], check=True, capture_output=True, cwd=CLONE)
    extras = {extra for word in words for found in re.findall(r"^\.\[(.*)\]$", word) for extra in found.split(",")}
    if unknown := extras - set(metadata("nfsearch").get_all("Provides-Extra")):
        raise ValueError(f"no extra {unknown}")


CLONE, plan = sys.argv[1:]
for each in json.loads(Path(plan).read_text()):
    try:
        play(each)
    except BaseException as error:
        raise RuntimeError(f"README.md, line {each['line']}: {each['text']}") from error
