"""`nfsearch run`: one search from its config to its files.

    DIR/ config.yaml   study.journal   latency.parquet   log.txt
         result.json   candidates.csv   front.csv   report.html   front.png

The study is the truth. Whatever the report needs besides candidates is kept as the study's meta when the run starts.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from nfsearch.config import Config, load_config
from nfsearch.display import progress_display, say, search_line, search_view
from nfsearch.errors import WorkFailed
from nfsearch.latency_lut import LatencyTable, keys_for
from nfsearch.outputs import write_outputs
from nfsearch.records import CONFIG, JOURNAL, fingerprint, result_of, run_meta, table_meta
from nfsearch.result import RunResult
from nfsearch.search import STRATEGIES, Budgets, Strategy
from nfsearch.search.engine import Engine
from nfsearch.search.evaluation import make_evaluator
from nfsearch.search.study import Store, open_store
from nfsearch.space import Architecture, SearchSpace
from nfsearch.tables import check, measure
from nfsearch.yaml_file import YamlFile

TABLE, LOG = "latency.parquet", "log.txt"


def search(config_path: Path, out: Path | None, *, resume: bool, assignments: Sequence[str]) -> int:
    """Runs, or resumes, the search of a config and writes its folder. Returns the exit status.

    Raises ValueError or OSError for wrong input, before anything is written, and WorkFailed for what fails later.
    """
    from nfsearch.latency_lut import device
    from nfsearch.proxies.data import prepare

    config, file = load_config(config_path, assignments)
    folder = _folder(config_path, out, resume)
    kind = device.resolve(config.latency.device)
    corpus = prepare(config.proxy)
    space = config.space.build(corpus.vocab)
    if space.vocab < corpus.vocab:
        raise ValueError(f"space.vocab is {space.vocab}; the tokenizer of {corpus.name} has {corpus.vocab} entries")
    _strategy(space, config, Budgets(lambda architecture: {}))  # refuses known designs outside the space
    table = None
    if config.latency.table != "auto":
        table = LatencyTable.load(config.latency.table)
        table.require_device(device.device_slug(kind))
        table.require(keys_for(space, config.latency.workloads, config.latency.dtype_on(kind)))
        strategy = _strategy(space, config, _budgets(config, table, kind))
        strategy.propose(0, [])  # an unreachable budget is told before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    meta = run_meta(config, file, space, assignments, device.device_name(kind))
    identity = {**fingerprint(config), "data": corpus.digest, "device": device.device_slug(kind)}
    with open_store(
        config.storage or folder / JOURNAL,
        objectives=config.objective_names,
        fingerprint=identity,
        meta=meta,
        resume=resume,
    ) as store:
        _write_config(folder, file, config_path, assignments)
        with _work(folder, store) as status:
            if table is None:
                table = measure(config, space, folder / TABLE)
            store.set_meta("table", table_meta(table, folder))
            budgets = _budgets(config, table, kind)
            if config.latency.verify and "verification" not in store.meta:
                found = check(
                    config,
                    space,
                    table,
                    config.latency.verify,
                    config.search.seed + 1,
                    budgets.fit if space.fit_width else None,
                )
                store.set_meta("verification", found.to_dict())
            strategy = _strategy(space, config, budgets)
            factory = partial(make_evaluator, corpus, config.proxy, kind)
            engine = Engine(strategy, store, factory, config.workers, cuda=kind == "cuda")
            with progress_display() as show:
                last = engine.run(lambda now: show(search_view(now), search_line(now), False))
                show(search_view(last), search_line(last), True)
            if last.ended:
                say(f"The search ended early: {last.ended}")
            status["status"] = "complete"
        result = result_of(store)
        write_outputs(result, folder)
    print_front(result, folder)
    return 0


def print_front(result: RunResult, folder: Path) -> None:
    """The front as a table on stdout, and where the report is."""
    workloads = result.workloads()
    table = Table(title=f"Pareto front: {len(result.front)} of {len(result.candidates)} candidates")
    for name in ("#", "loss", *(f"{name} ms" for name in workloads), "params", "width"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("architecture", overflow="fold")
    for number in result.front:
        record = result.candidate(number)
        times = (f"{record.latency[name].seconds * 1e3:.4g}" for name in workloads)
        notation = record.notation.replace("[", r"\[")
        table.add_row(
            str(number), f"{record.loss:.4f}", *times, f"{record.parameters / 1e6:.2f}M", str(record.width), notation
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(f"Report: {(folder / 'report.html').resolve()}")


# --- the folder -------------------------------------------------------------------------------------------------------


def _folder(config_path: Path, out: Path | None, resume: bool) -> Path:
    """Where the run is written: `out`, or runs/NAME, made unique unless it is to be resumed."""
    if out is None:
        name = config_path.resolve().parent.name if config_path.stem == "config" else config_path.stem
        names = [name, *(f"{name}-{n}" for n in range(2, 10_000))]
        there = [folder for n in names if (folder := Path("runs", n)).exists()]
        fresh = next(folder for n in names if not (folder := Path("runs", n)).exists())
        out = there[-1] if resume and there else fresh
    if out.exists():
        if not out.is_dir():
            raise ValueError(f"{out} is a file; --out names a folder")
        if any(out.iterdir()) and not resume:
            raise ValueError(f"{out} is not empty: go on with its run (--resume), or write to another folder (--out)")
    elif resume:
        raise ValueError(f"{out}: there is no run to resume")
    return out


def _write_config(folder: Path, file: YamlFile, source: Path, assignments: Sequence[str]) -> None:
    text = file.text
    if assignments:
        text = f"# {source} with --set {' '.join(map(shlex.quote, assignments))}\n"
        text += yaml.safe_dump(file.values, sort_keys=False, allow_unicode=True)
    (folder / CONFIG).write_text(text, encoding="utf-8")


@contextmanager
def _work(folder: Path, store: Store) -> Iterator[dict[str, str]]:
    """What happens here is the run's work: its end is written down, a failure goes to the log and becomes WorkFailed,
    and after Ctrl-C the report is written of what there is."""
    handler = logging.FileHandler(folder / LOG)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("nfsearch")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    began, before = time.monotonic(), float(store.meta.get("seconds", 0.0))
    status = {"status": "failed-to-finish"}
    try:
        yield status
    except KeyboardInterrupt:
        status["status"] = "interrupted"
        _close(store, status["status"], before + time.monotonic() - began)
        write_outputs(result_of(store), folder)
        say(f"Interrupted. What finished is kept; go on with --resume --out {folder}")
        raise
    except Exception as error:
        logger.error("%s", traceback.format_exc())
        _close(store, status["status"], before + time.monotonic() - began)
        raise WorkFailed(f"{error} (details in {folder / LOG})") from error
    else:
        _close(store, status["status"], before + time.monotonic() - began)
    finally:
        logger.removeHandler(handler)
        handler.close()


def _close(store: Store, status: str, seconds: float) -> None:
    store.set_meta("status", status)
    store.set_meta("seconds", seconds)


def _strategy(space: SearchSpace, config: Config, budgets: Budgets) -> Strategy:
    return STRATEGIES[config.search.strategy](space, config.search, budgets)


def _budgets(config: Config, table: LatencyTable, kind: str) -> Budgets:
    dtype = config.latency.dtype_on(kind)
    workloads = config.latency.workloads

    def estimate(architecture: Architecture) -> dict[str, tuple[float, float]]:
        found = {name: table.estimate(architecture, workload, dtype) for name, workload in workloads.items()}
        return {name: (each.seconds, each.error) for name, each in found.items()}

    memory: Callable[[Architecture], float] | None = None
    limit = config.limits.get("memory_gb")
    if limit is not None:
        itemsize = 4 if dtype == "float32" else 2

        def memory(architecture: Architecture) -> float:
            states = (architecture.state_bytes(w.batch, w.context, itemsize) for w in workloads.values())
            return architecture.parameters * itemsize + max(states)

    return Budgets(estimate, config.budgets, memory, limit * 1e9 if limit is not None else None)
