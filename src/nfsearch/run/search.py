"""`nfsearch run`: one search from its config to its files.

    DIR/ config.yaml   study.journal   latency.parquet
         result.json   candidates.csv   front.csv   report.html   front.png
         log.txt, where there was something to warn of

The study is the truth. Whatever the report needs besides candidates is kept as the study's meta when the run starts.
"""

from __future__ import annotations

import logging
import shlex
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.markup import escape
from rich.table import Table

from nfsearch.latency_lut import LatencyTable, device, keys_for
from nfsearch.proxies.data import Corpus, prepare
from nfsearch.proxies.twin import check_narrowing
from nfsearch.report.outputs import write_outputs
from nfsearch.report.result import RunResult
from nfsearch.run.config import Config, load_config
from nfsearch.run.records import CONFIG, JOURNAL, fingerprint, result_of, run_meta, study_place, table_meta
from nfsearch.run.tables import budgets_of, check_layers, checked, given_table, is_here, measure, training_kind
from nfsearch.run.view import search_line, search_view
from nfsearch.run.yaml_file import YamlFile
from nfsearch.search import STRATEGIES, Budgets, Strategy
from nfsearch.search.engine import Engine
from nfsearch.search.evaluation import make_evaluator
from nfsearch.search.study import Store, open_store
from nfsearch.space import SearchSpace
from nfsearch.support.errors import WorkFailed
from nfsearch.support.files import write_atomically
from nfsearch.support.terminal import progress_display, say, stdout

TABLE, LOG = "latency.parquet", "log.txt"


@dataclass(frozen=True)
class _Job:
    """Everything that a search is given, read and found right."""

    config: Config
    file: YamlFile
    folder: Path
    device: str  # what candidates are trained on, "cpu" or "cuda"
    corpus: Corpus
    space: SearchSpace
    table: LatencyTable | None  # None: measured at the start

    def strategy(self, budgets: Budgets) -> Strategy:
        return STRATEGIES[self.config.search.strategy](self.space, self.config.search, budgets)


def search(config_path: Path, out: Path | None, *, resume: bool, assignments: Sequence[str]) -> int:
    """Runs, or resumes, the search of a config and writes its folder. Returns the exit status.

    Raises ValueError or OSError for wrong input, before anything is written, and WorkFailed for what fails later.
    """
    job = _read(config_path, out, resume, assignments)
    storage, name = study_place(job.config, job.folder)
    if not job.config.storage:
        job.folder.mkdir(parents=True, exist_ok=True)
    with open_store(
        storage,
        name=name,
        objectives=job.config.objective_names,
        fingerprint={
            **fingerprint(job.config),
            "data": job.corpus.digest,
            "device": device.device_slug(job.device),
            "table": job.table and _identity(job.table.provenance.to_dict()),
        },
        meta=run_meta(job.config, job.file, job.space, device.device_name(job.device)),
        choices=lambda answers: {question.name: question.options for question in job.space.build(answers).questions},
        resume=resume,
    ) as store:
        job.folder.mkdir(parents=True, exist_ok=True)
        if "started" not in store.meta:
            store.set_meta("started", datetime.now(timezone.utc).isoformat(timespec="seconds"))
        _write_config(job.folder, job.file, config_path, assignments)
        with _work(job.folder, store):
            _carry_out(job, store)
        result = result_of(store)
    print_front(result, job.folder)
    return 0


def _read(config_path: Path, out: Path | None, resume: bool, assignments: Sequence[str]) -> _Job:
    """Reads all input and checks what can be checked before any work. Raises ValueError or OSError."""
    config, file = load_config(config_path, assignments)
    folder = _folder(config, config_path, out, resume)
    corpus = prepare(config.proxy)
    space = config.space.build(corpus.vocab)
    if space.vocab < corpus.vocab:
        raise ValueError(f"space.vocab is {space.vocab}; the tokenizer of {corpus.name} has {corpus.vocab} entries")
    check_layers(config, space)
    check_narrowing(space, config.proxy.narrow)
    table = given_table(config)
    job = _Job(config, file, folder, training_kind(config), corpus, space, table)
    job.strategy(Budgets(lambda architecture: {}))  # refuses known designs outside the space
    if table is not None:
        keys = keys_for(space, config.latency.workloads, config.latency.dtype_on(table.provenance.kind))
        table.require(keys, config.latency.accept)
        job.strategy(budgets_of(config, table)).propose(0, [])  # raises if no member keeps the limits
    elif job.device == "cpu":
        _need_memory(config)
    return job


def _need_memory(config: Config) -> None:
    """Raises ValueError for a throughput at as many sequences as fit into a memory that no table of a CPU knows."""
    for name, workload in config.latency.workloads.items():
        if workload.phase == "throughput" and workload.memory_gb is None:
            raise ValueError(f"latency.workloads.{name}: on a CPU a throughput needs memory_gb, how much may be taken")


def _carry_out(job: _Job, store: Store) -> None:
    """Measures, checks, searches."""
    config, space = job.config, job.space
    if not is_here(config):
        say(f"Planning for {config.latency.device}, training on {device.device_name(job.device)}")
    table = job.table
    if table is None:
        keys = keys_for(space, config.latency.workloads, config.latency.dtype_on(job.device))
        table = measure(config, keys, job.folder / TABLE)
        _same_table(store, table)
    store.set_meta("table", table_meta(table, job.folder))
    budgets = budgets_of(config, table)
    if store.meta.get("verify") != config.latency.verify:
        found = checked(config, space, table)
        if found is not None:
            store.set_meta("verification", found.model_dump(mode="json"))
        store.set_meta("verify", config.latency.verify)
    factory = partial(make_evaluator, job.corpus, config.proxy, job.device)
    engine = Engine(job.strategy(budgets), store, factory, config.workers, cuda=job.device == "cuda")
    with progress_display() as show:
        last = engine.run(lambda now: show(search_view(now), search_line(now), False))
        show(search_view(last), search_line(last), True)
    if last.ended:
        say(f"The search ended early: {last.ended}")


def _identity(provenance: Mapping[str, Any]) -> str:
    return " ".join(str(provenance[name]) for name in ("device", "date"))


def _same_table(store: Store, table: LatencyTable) -> None:
    """Raises ValueError where a table measured anew comes after candidates: their times cannot be compared."""
    before = store.meta.get("table")
    if before is None or not store.candidates():
        return
    old, new = _identity(before["provenance"]), _identity(table.provenance.to_dict())
    if old != new:
        raise ValueError(
            f"the run's candidates were timed by another latency table than {table.path} ({old}, now {new}): "
            "put that one back, or search anew (--out)"
        )


def print_front(result: RunResult, folder: Path) -> None:
    """The front as a table on stdout, and where the report is."""
    workloads, units = result.workloads(), {objective.unit for objective in result.objectives}
    memory = ("memory GB",) if "bytes" in units else ()
    table = Table(title=f"Pareto front: {len(result.front)} of {len(result.candidates)} candidates")
    for name in ("#", "loss", *(f"{name} ms" for name in workloads), *memory, "params", "width"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("architecture", overflow="fold")
    for number in result.front:
        record = result.candidate(number)
        figures = [f"{record.latency[name].seconds * 1e3:.4g}" for name in workloads]
        if memory and record.memory_bytes is not None:
            figures.append(f"{record.memory_bytes / 1e9:.4g}")
        notation = escape(record.notation)
        table.add_row(
            str(number), f"{record.loss:.4f}", *figures, f"{record.parameters / 1e6:.2f}M", str(record.width), notation
        )
    stdout().print(table)
    print(f"Report: {(folder / 'report.html').resolve()}")


# --- the folder -------------------------------------------------------------------------------------------------------


def _folder(config: Config, config_path: Path, out: Path | None, resume: bool) -> Path:
    """Where the run is written: `out`, or runs/NAME, made unique unless it is to be resumed."""
    if out is None:
        name = config_path.absolute().parent.name if config_path.stem == "config" else config_path.stem
        names = [name, *(f"{name}-{n}" for n in range(2, 10_000))]
        there = [folder for n in names if (folder := Path("runs", n)).exists()]
        fresh = next(folder for n in names if not (folder := Path("runs", n)).exists())
        out = there[-1] if resume and there else fresh
    if out.exists():
        if not out.is_dir():
            raise ValueError(f"{out} is a file; --out names a folder")
        if any(out.iterdir()) and not resume:
            raise ValueError(f"{out} is not empty: go on with its run (--resume), or write to another folder (--out)")
    if resume and not (out / (CONFIG if config.storage else JOURNAL)).is_file():
        raise ValueError(f"{out}: there is no run to resume")
    return out


def _write_config(folder: Path, file: YamlFile, source: Path, assignments: Sequence[str]) -> None:
    text = file.text
    if assignments:
        text = f"# {source} {' '.join(f'--set {shlex.quote(assignment)}' for assignment in assignments)}\n"
        text += yaml.safe_dump(file.values, sort_keys=False, allow_unicode=True)
    write_atomically(folder / CONFIG, text)


@contextmanager
def _work(folder: Path, store: Store) -> Iterator[None]:
    """What happens here is the run's work: how it ended is written down, a failure goes to the log and becomes
    WorkFailed, and after Ctrl-C the report is written of what there is."""
    handler = logging.FileHandler(folder / LOG, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("nfsearch")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    began, before = time.monotonic(), float(store.meta.get("seconds", 0.0))

    def end(status: str) -> None:
        store.set_meta("status", status)
        store.set_meta("seconds", before + time.monotonic() - began)

    try:
        yield
        end("complete")
        write_outputs(result_of(store), folder)
    except KeyboardInterrupt:
        end("interrupted")
        try:
            write_outputs(result_of(store), folder)
        except OSError as error:
            say(f"The report could not be written: {error}")
        again = shlex.join(["nfsearch", "run", str(folder / CONFIG), "--out", str(folder), "--resume"])
        say(f"Interrupted. What finished is kept; to go on: {again}")
        raise
    except Exception as error:
        logger.error("%s", traceback.format_exc())
        end("failed-to-finish")
        raise WorkFailed(f"{error} (details in {folder / LOG})") from error
    finally:
        logger.removeHandler(handler)
        handler.close()
