"""What README.md tells its reader to type: its fenced blocks, and commands and settings within its sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
README = ROOT / "README.md"
SECTIONS = (
    "space",
    "latency",
    "proxy",
    "also",
    "search",
    "rule",
    "objectives",
    "limits",
    "workers",
    "storage",
)  # of a config
SPACE = {"width": 64, "layers": "D[head_dim=32] F[ratio=2|3]{0..1}"}  # four rows of a table: fewer cannot be calibrated
_SMALL = """
import yaml
from pathlib import Path

config = yaml.safe_load(Path("config.yaml").read_text())
config["space"] = SPACE
config["latency"].update(table=TABLE, verify=0, accept=["busy"])
config["proxy"].update(tokens=2048, sequence=64, batch=8, validation_tokens=2048)
config["search"].update(evaluations=2, population=2, tournament=2, seeds_known=[])
config["workers"] = {"executor": "local"}
Path("config.yaml").write_text(yaml.safe_dump(config))
"""


@dataclass(frozen=True)
class Step:
    """A line of a bash or console block, a whole block of another language, or code within a sentence."""

    line: int  # of README.md, from 1
    kind: str  # command, python, yaml, or named: a command that a sentence names, perhaps without what it asks for
    text: str
    remark: str = ""  # behind the #
    output: str | None = None  # what a console block shows below its command

    @property
    def needs_gpu(self) -> bool:
        """As its remark says."""
        return self.remark.startswith("GPU")

    @property
    def installs(self) -> bool:
        """Make and pip work in the clone, whereas all else works anywhere."""
        return re.match(r"(\w+=\S+ )*(make|pip) ", self.text) is not None


def as_json(step: Step) -> dict[str, object]:
    """For play.py."""
    return {**asdict(step), "needs_gpu": step.needs_gpu, "installs": step.installs}


def steps(text: str) -> list[Step]:
    """In the order of the page."""
    found: list[Step] = []
    language, start, lines = "", 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("```"):
            if language:
                lines.append(line)
            else:
                found += _within(number, line)
        elif language:
            found += _block(language, start, lines)
            language = ""
        else:
            language, start, lines = line.removeprefix("```") or "none", number + 1, []
    return found


def shortened(lines: list[Step], table: str = "auto") -> Iterator[Step]:
    """With a small space and little training in the config that `nfsearch init` makes; and a table, if it is there."""
    for step in lines:
        yield step
        if step.text == "nfsearch init":
            yield Step(step.line, "python", f"SPACE, TABLE = {SPACE!r}, {table!r}\n{_SMALL}")


def _block(language: str, start: int, lines: list[str]) -> Iterator[Step]:
    if language == "bash":
        for number, line in enumerate(lines, start):
            command, _, remark = line.partition("  # ")
            if command.strip():
                yield Step(number, "command", command.strip(), remark)
            yield from _within(number, remark)
    elif language == "console":
        for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", "\n".join([*lines, ""]), re.MULTILINE):
            yield Step(start + lines.index(f"$ {command}"), "command", command, output=output)
    elif language in ("python", "yaml"):
        yield Step(start, language, "\n".join(lines))
    elif language != "text":
        raise ValueError(f"README.md, line {start}: a block is bash, console, python, yaml or text, not {language}")


def _within(number: int, line: str) -> Iterator[Step]:
    for code in re.findall(r"`([^`]+)`", line):
        if re.match("|".join(f"{section}: " for section in SECTIONS), code):
            yield Step(number, "yaml", code)
        elif re.match("(nfsearch|make|pip) ", code):
            yield Step(number, "named", code)
