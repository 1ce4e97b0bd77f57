"""How far off are rows that are measured beside a job that keeps every processor busy?

    python -m tests.latency_lut.busy

Builds a small table on the CPU, once while the machine is as quiet as it is, and once beside one busy process more
than there are processors. Prints the rows that are off by more than a quarter, and exits with 1 if one of them carries
no mark. Takes a few minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nfsearch.latency_lut import LatencyTable, Workload, profiler
from nfsearch.latency_lut.errors import Busy

from .helpers import small_space

OFF = 0.25
WORKLOADS = {"tpot": Workload(context=100), "ttft": Workload(phase="prefill", context=64)}


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that do nothing but compute."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def build(folder: Path, name: str) -> LatencyTable:
    """Where it would be refused, all the same, so as to see what its rows are worth."""
    keys = profiler.rows_of(small_space((64,)), WORKLOADS, "float32", "cpu")
    table = profiler.build(keys, folder / f"{name}.parquet", device="cpu", accept=["busy"])
    try:
        profiler._refuse_disturbed(table, keys, accept=())
    except Busy as busy:
        print(f"{name}: would be refused, {busy}")
    print(f"{name}: {len(table.rows)} rows, {table.disturbance() or 'none disturbed'}", flush=True)
    return table


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        quiet = build(Path(name), "quiet")
        with busy_processes((os.cpu_count() or 1) + 1):
            busy = build(Path(name), "busy")
    unmarked = 0
    for key, row in busy.rows.items():
        alone = quiet.rows[key]
        if row.latency_ms is None or alone.latency_ms is None:
            continue
        off = row.latency_ms / alone.latency_ms - 1
        trusted = not (row.disturbed or alone.disturbed)
        unmarked += abs(off) > OFF and trusted
        if abs(off) > OFF:
            mark = "NOT MARKED" if trusted else "marked"
            print(f"{off:+7.0%} {mark}, disturbance {row.disturbance:.2f} (quiet {alone.disturbance:.2f}): {key}")
    print(f"{unmarked} rows are off by more than {OFF:.0%} without a mark")
    return int(unmarked > 0)


if __name__ == "__main__":
    sys.exit(main())
