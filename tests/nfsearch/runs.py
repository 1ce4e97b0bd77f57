"""A tiny search for tests: seconds of training, a latency table made of invented figures for this very machine."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from nfsearch.latency_lut import LatencyTable, Workload, keys_for, save_table
from nfsearch.latency_lut.code import digest_of
from nfsearch.latency_lut.device import provenance
from nfsearch.latency_lut.rows import MEASURED, Row
from nfsearch.run.config import load_config
from nfsearch.space import SpaceSettings

SPACE: dict[str, Any] = {
    "width": [32, 64],
    "where": {"mixer": "A[head_dim=16] | D[head_dim=16] | M2[head_dim=16,state=16]"},
    "layers": "(mixer F[ratio=2]{0..1}){1..3}",
}
Run = Callable[..., str]  # runs a command line and returns what it says
BYTES_VOCAB = 257
FILES = (
    "config.yaml",
    "study.journal",
    "result.json",
    "candidates.csv",
    "front.csv",
    "front.png",
    "report.html",
)  # of a run's folder


@contextmanager
def files_of_at_most(room: int) -> Iterator[None]:
    """Has writing more bytes than these into a file fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def complaint(path: Path, text: str, assignments: Sequence[str] = ()) -> str:
    """What is wrong with a config of this text."""
    path.write_text(text)
    with pytest.raises(ValueError) as said:  # noqa: PT011  (the text is compared)
        load_config(path, assignments)
    return str(said.value)


def invented_table(path: Path, space: dict[str, Any] = SPACE, vocab: int = BYTES_VOCAB, dtype: str = "float32") -> Path:
    """Each block takes its parameters in nanoseconds."""
    built = SpaceSettings(**space).build(vocab)
    table = LatencyTable(provenance("cpu"))
    for key in keys_for(built, {"tpot": Workload(context=64)}, dtype):
        ms = 1e-3 * key.width if key.is_end else 1e-2 * key.width * (1 + len(key.block) / 10)
        table.add(Row(key, MEASURED, ms, 0.0, 9, 4, 1.0, 0.0, 0.0, False, digest_of(key)))
    save_table(table, path)
    return path


def tiny_config(folder: Path, **changes: Any) -> Path:
    """Writes a config that trains for a moment in the process that reads it, without Ray; `changes` are sections to
    merge in."""
    sections: dict[str, Any] = {
        "space": SPACE,
        "latency": {
            "device": "cpu",
            "table": str(invented_table(folder / "table.parquet")),
            "workloads": {"tpot": {"context": 64}},
            "verify": 0,
        },
        "proxy": {"tokens": 2048, "sequence": 32, "batch": 8, "validation_tokens": 1024, "learning_rate": 4e-3},
        "search": {"evaluations": 8, "population": 4, "tournament": 2},
        "workers": {"executor": "local"},
    }
    for name, change in changes.items():
        sections[name] = {**sections.get(name, {}), **change} if isinstance(change, dict) else change
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(sections, sort_keys=False))
    return path


RAY = ("--set", "workers.executor=ray", "--set", "workers.count=1")  # in the place of `tiny_config`'s executor


def start(*arguments: str | Path, cwd: Path) -> subprocess.Popen[str]:
    """nfsearch in a process group of its own."""
    command = [sys.executable, "-m", "nfsearch", *map(str, arguments)]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def nfsearch(*arguments: str | Path, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs the command line to its end and checks its exit status."""
    process = start(*arguments, cwd=cwd)
    out, err = process.communicate(timeout=240)
    assert process.returncode == status, f"exit status {process.returncode}\n{out}\n{err}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill_group(process: subprocess.Popen[str]) -> None:
    """kill -9 of the driver alone; whatever it started has to notice."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def journal_trials(folder: Path) -> int:
    """Candidates finished so far, read while the run goes on."""
    journal = folder / "study.journal"
    return journal.read_text().count('"op_code":4') if journal.exists() else 0
