"""What is fuzzed: valid samples, how they are changed, and the commands that read them."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nfsearch.latency_lut import load_table
from nfsearch.latency_lut.files import Journal
from nfsearch.proxies.sampling import sample, samplers_for
from nfsearch.proxies.sources import open_data
from nfsearch.report.result import RunResult
from nfsearch.run.plan import read_plan
from tests.fuzz import mutations

Change = Callable[[random.Random, bytes], bytes]
Command = Callable[[Path], Sequence[str] | None]  # arguments of the command line; None: it has read the file itself

NOTATIONS = [
    "(D F M2 F A F M2 F){2} (D F M2 F){2}",
    "(mixer F{0..2}){1..8}; mixer = D | M2 | A",
    "A[kv_heads=4, window=512|none] F[ratio=2|3|4]*{1..6}",
    "(D | A[head_dim=64|128])*{2..9} (GDN GLA){1..3} | ()",
    "one{1..40}; one = two two; two = three{0..2}; three = (D | F) fla:X[x=1|2.5|none]",
    "D{2000}",
]


@dataclass(frozen=True)
class Target:
    """A sample is changed, and `commands` read it one after the other."""

    name: str
    samples: Sequence[Path]
    changes: Sequence[Change]
    commands: Sequence[Command]
    beside: Path | None = None  # a folder whose files are there too


def prepare(folder: Path, finished: Path | None = None) -> None:
    """Writes the samples into a folder, with a search that has run to its end: a copy of one, or one made now."""
    from nfsearch.run.search import search
    from tests.nfsearch.runs import tiny_config

    config = tiny_config(folder, search={"evaluations": 5}, limits={"tpot_ms": 50, "memory_gb": 16})
    if finished:
        shutil.copytree(finished, folder / "run")
    else:
        search(config, folder / "run", resume=None, assignments=())
    table = load_table(folder / "table.parquet")
    with Journal(folder / "t.parquet") as journal:
        journal.start(table.provenance)
        for row in list(table.rows.values())[:20]:
            journal.add(row)
    for number, notation in enumerate(NOTATIONS):
        (folder / f"{number}.notation").write_text(notation)
    (folder / "a.jsonl").write_text('{"text": "one two"}\n{"text": "three", "more": [1, 2]}\n' * 9)
    (folder / "a.txt").write_text("Call me Ishmael.\n" * 99)
    pq.write_table(pa.table({"text": ["one", "two", "three"] * 50, "number": range(150)}), folder / "a.parquet")


def all_of(folder: Path) -> list[Target]:
    """The targets, whose samples were written into the folder."""
    plain: list[Change] = [mutations.of_bytes, mutations.of_tokens, mutations.of_tokens, mutations.of_numbers]
    lines: list[Change] = [*plain, *[mutations.of_lines] * 4]
    parquet: list[Change] = [mutations.of_bytes, *[mutations.of_parquet] * 3]
    yaml, json = [*plain, *[mutations.of_yaml] * 4], [*plain, *[mutations.of_json] * 4]
    texts, run = sorted(folder.glob("*.notation")), folder / "run"
    return [
        Target("config", [folder / "config.yaml"], yaml, [_config, _config_sampled, _planned]),
        Target("notation", texts, [*plain, mutations.of_numbers], [_expression, _sampled, _checked]),
        Target("table", [folder / "table.parquet"], parquet, [_shown, _estimated]),
        Target("table journal", [folder / "t.parquet.journal"], lines, [_read_rows]),
        Target("study journal", [run / "study.journal"], lines, [_reported], run),
        Target("result", [run / "result.json"], json, [_read_result]),
        Target("lines of JSON", [folder / "a.jsonl"], lines, [_read_data]),
        Target("text", [folder / "a.txt"], plain, [_read_data]),
        Target("Parquet of text", [folder / "a.parquet"], parquet, [_read_data]),
    ]


# --- commands --------------------------------------------------------------------------------------------------------


def _config(path: Path) -> Sequence[str]:
    return ["space", str(path)]


def _config_sampled(path: Path) -> Sequence[str]:
    return ["space", str(path), "--sample", "1"]


def _planned(path: Path) -> None:
    """All that `nfsearch run` reads before it begins."""
    read_plan(path, path.with_name("out"), None, [])


def _expression(path: Path) -> Sequence[str]:
    return ["space", "--", path.read_bytes().decode(errors="replace").replace("\0", " ")]


def _sampled(path: Path) -> Sequence[str]:
    return ["space", "--sample", "1", *_expression(path)[1:]]


def _checked(path: Path) -> Sequence[str]:
    return ["space", "--check", "(D F){9} A", *_expression(path)[1:]]


def _shown(path: Path) -> Sequence[str]:
    return ["lut", "show", str(path)]


def _estimated(path: Path) -> Sequence[str]:
    return ["lut", "estimate", str(path), "D[head_dim=16] F[ratio=2]", "--width", "64"]


def _reported(path: Path) -> Sequence[str]:
    return ["report", str(path.parent)]


def _read_rows(path: Path) -> None:
    Journal(path.with_name("t.parquet")).read()


def _read_result(path: Path) -> None:
    RunResult.load(path)


def _read_data(path: Path) -> None:
    (entry,) = open_data(str(path))
    for _ in sample(entry.source, samplers_for(entry, {False: 2000, True: 100}, lambda texts: sum(map(len, texts)))):
        pass
