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
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

from nfsearch.latency_lut import LatencyTable, device, keys_for
from nfsearch.report.outputs import write_outputs
from nfsearch.run.finalists import time_front
from nfsearch.run.log import LOG, logged
from nfsearch.run.plan import Plan, read_plan
from nfsearch.run.records import CONFIG, TABLE, fingerprint, result_of, run_meta, study_place, table_meta
from nfsearch.run.summary import distrust, print_summary
from nfsearch.run.tables import checked, is_here, measure
from nfsearch.run.view import search_line, search_view
from nfsearch.run.yaml_file import YamlFile
from nfsearch.search.loop import Loop
from nfsearch.search.study import Store, open_store
from nfsearch.support.errors import WorkFailed
from nfsearch.support.files import write_atomically
from nfsearch.support.interrupt import interruptible
from nfsearch.support.terminal import announce, progress_display, say

logger = logging.getLogger(__name__)


def search(
    config_path: Path, out: Path | None, *, resume: bool, assignments: Sequence[str], strict: bool = False
) -> int:
    """Runs, or resumes, the search of a config and writes its folder. Returns the exit status. `strict`: latencies that
    are not to be trusted are a failure, once everything is written.

    Raises ValueError or OSError for wrong input, before anything is written, and WorkFailed for what fails later.
    """
    plan = read_plan(config_path, out, resume, assignments)
    storage, name = study_place(plan.config, plan.folder)
    if not plan.config.storage:
        plan.folder.mkdir(parents=True, exist_ok=True)
    with open_store(
        storage,
        name=name,
        objectives=plan.config.objective_names,
        fingerprint={
            **fingerprint(plan.config),
            "data": plan.proxy.fidelity.data,
            "device": device.device_slug(plan.device),
            "table": plan.table and _identity(plan.table.provenance.to_dict()),
        },
        meta=run_meta(plan.config, plan.file, plan.space, device.device_name(plan.device)),
        choices=lambda answers: {question.name: question.options for question in plan.space.build(answers).questions},
        resume=resume,
    ) as store:
        plan.folder.mkdir(parents=True, exist_ok=True)
        if "started" not in store.meta:
            store.set_meta("started", datetime.now(timezone.utc).isoformat(timespec="seconds"))
        _write_config(plan.folder, plan.file, config_path, assignments)
        with _work(plan.folder, store):
            _carry_out(plan, store)
        result = result_of(store)
    print_summary(result, plan.folder)
    if result.candidates and len(result.in_state("failed")) == len(result.candidates):
        raise WorkFailed(
            f"all {len(result.candidates)} candidates failed, the first with: {result.candidates[0].error}"
        )
    if strict and not (result.table and result.table.trusted):
        raise WorkFailed(f"--strict: {distrust(result) or 'the latency table was never checked'}")
    return 0


def _carry_out(plan: Plan, store: Store) -> None:
    """Measures, checks, searches."""
    config, space = plan.config, plan.space
    if not is_here(config):
        say(f"Planning for {config.latency.device}, training on {device.device_name(plan.device)}")
    table = plan.table
    if table is None:
        keys = keys_for(space, config.latency.workloads, config.latency.dtype_on(plan.device))
        table = measure(config, keys, plan.folder / TABLE)
        _same_table(store, table)
    store.set_meta("table", table_meta(table, plan.folder))
    if store.meta.get("verify") != config.latency.verify:
        found = checked(config, space, table)
        if found is not None:
            store.set_meta("verification", found.model_dump(mode="json"))
        store.set_meta("verify", config.latency.verify)
    begun = plan.begin(table)
    for warning in begun.warnings:
        announce(warning)
    with interruptible() as interrupted, progress_display() as show:
        loop = Loop(
            begun.strategy,
            store,
            plan.executor,
            begun.budgets.limits,
            evaluations=config.search.evaluations,
            rule=plan.rule(),
            stop=interrupted.is_set,
        )
        first = config.metrics[config.objective_names[0]]
        last = loop.run(lambda now: show(search_view(now, first), search_line(now, first), False))
        show(search_view(last, first), search_line(last, first), True)
    if interrupted.is_set():
        raise KeyboardInterrupt
    if last.ended:
        say(f"The search ended early: {last.ended}")
    time_front(config, store, table)


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


# --- the folder -------------------------------------------------------------------------------------------------------


def _write_config(folder: Path, file: YamlFile, source: Path, assignments: Sequence[str]) -> None:
    text = file.text
    if assignments:
        text = f"# {source} {' '.join(f'--set {shlex.quote(assignment)}' for assignment in assignments)}\n"
        text += yaml.safe_dump(file.values, sort_keys=False, allow_unicode=True)
    write_atomically(folder / CONFIG, text)


@contextmanager
def _work(folder: Path, store: Store) -> Iterator[None]:
    """What happens here is the run's work: how it ended is written down, a failure goes to the log and becomes
    WorkFailed, and after an interrupt the report is written of what there is."""
    began, before = time.monotonic(), float(store.meta.get("seconds", 0.0))

    def end(status: str) -> None:
        store.set_meta("status", status)
        store.set_meta("seconds", before + time.monotonic() - began)

    with logged(folder):
        try:
            yield
            end("complete")
            write_outputs(result_of(store), folder)
        except KeyboardInterrupt:
            with interruptible():  # asking again does not hurry it
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
