"""`nfsearch run`: one search from its config to its files.

    DIR/ config.yaml   study.journal (or, with `storage`, study.name)   latency.parquet
         result.json   candidates.csv   front.csv   report.html   front.png
         log.txt, where there was something to warn of

The study is the truth. Whatever the report needs besides candidates is kept as the study's meta when the run starts.
"""

from __future__ import annotations

import errno
import logging
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from nfsearch.latency_lut import LatencyTable, device
from nfsearch.latency_lut.keys import Key
from nfsearch.latency_lut.profiler import rows_of
from nfsearch.latency_lut.provenance import KERNELS
from nfsearch.latency_lut.verification import keep_verification
from nfsearch.run.finalists import time_front
from nfsearch.run.plan import Plan, read_plan
from nfsearch.run.records import (
    CONFIG,
    JOURNAL,
    STUDY,
    TABLE,
    config_text,
    fingerprint,
    result_of,
    run_meta,
    study_place,
    table_meta,
    used_table,
)
from nfsearch.run.sources import tell_sources
from nfsearch.run.summary import distrust, print_summary
from nfsearch.run.tables import checked, is_here, measure
from nfsearch.run.view import search_line, search_view
from nfsearch.run.weights import Weights
from nfsearch.run.work import work
from nfsearch.search.loop import Loop
from nfsearch.search.progress import Progress
from nfsearch.search.study import Store, create_study, delete_study, open_store
from nfsearch.support.errors import WorkFailed
from nfsearch.support.files import whole, write_atomically
from nfsearch.support.interrupt import interruptible
from nfsearch.support.terminal import announce, progress_display, say

logger = logging.getLogger(__name__)


def search(
    config_path: Path | None,
    out: Path | None = None,
    *,
    resume: Path | None = None,
    assignments: Sequence[str] = (),
    strict: bool = False,
) -> int:
    """Runs the search of a config and writes its folder, or goes on with the one in the folder `resume`. Returns the
    exit status. `strict`: latencies that are not to be trusted are a failure, once everything is written.

    Raises ValueError or OSError for wrong input, before anything is written, and WorkFailed for what fails later.
    """
    plan = read_plan(config_path, out, resume, assignments)
    meta = run_meta(plan.config, plan.file, plan.space, device.device_name(plan.device))
    asked = {
        **fingerprint(plan.config),
        "data": plan.proxy.fidelity.data,
        "device": device.device_slug(plan.device),
        "table": plan.table and _identity(plan.table.provenance.to_dict()),
    }
    if plan.resumed:
        del meta["command"]  # the one that began the run stays
    else:
        began = datetime.now(timezone.utc).isoformat(timespec="seconds")
        _begin(plan, asked, {**meta, "started": began}, config_text(plan.file, config_path, assignments))
    with open_store(
        *study_place(plan.config, plan.folder),
        metrics=plan.config.metrics,
        fingerprint=asked,
        meta=meta if plan.resumed else None,
        choices=lambda answers: {question.name: question.options for question in plan.space.build(answers).questions},
    ) as store:
        if plan.resumed and assignments:
            write_atomically(plan.folder / CONFIG, config_text(plan.file, plan.folder / CONFIG, assignments))
        start, before = time.monotonic(), float(store.meta.get("seconds", 0.0))

        def end(status: str) -> None:
            store.set_meta("status", status)
            store.set_meta("seconds", before + time.monotonic() - start)

        with work(plan.folder, store, shlex.join(["nfsearch", "run", "--resume", str(plan.folder)]), end):
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
    store.set_meta("sources", tell_sources(plan.proxy))
    if not is_here(config):
        say(f"Planning for {config.latency.device}, training on {device.device_name(plan.device)}")
    table = plan.table
    if table is None:
        keys = rows_of(space, config.latency.workloads, config.latency.dtype_on(plan.device), plan.device)
        begun = bool(store.candidates())
        table = _own_table(plan, store, keys) if begun else measure(config, keys, plan.folder / TABLE)
    store.set_meta("table", table_meta(table, plan.folder))
    if store.meta.get("verify") != config.latency.verify:
        found = checked(config, space, table)
        if found is not None:
            store.set_meta("verification", found.model_dump(mode="json"))
            if plan.table is None and table.path:
                keep_verification(table, found)  # for who uses the table in another run
        store.set_meta("verify", config.latency.verify)
    beginning = plan.begin(table)
    for warning in beginning.warnings:
        announce(warning)
    with interruptible() as interrupted, progress_display() as show:
        loop = Loop(
            beginning.strategy,
            store,
            plan.executor,
            beginning.budgets.limits,
            evaluations=config.search.evaluations,
            rule=plan.rule(),
            stop=interrupted.is_set,
        )
        first = config.metrics[config.objective_names[0]]
        weights = Weights(plan.proxy)

        def tell(now: Progress) -> None:
            weights.bound(now.history, now.standing.front)
            show(search_view(now, first), search_line(now, first), False)

        last = loop.run(tell)
        weights.bound(last.history, last.standing.front)  # of what came after all was told
        show(search_view(last, first), search_line(last, first), True)
    if interrupted.is_set():
        raise KeyboardInterrupt
    if last.ended:
        say(f"The search ended early: {last.ended}")
    time_front(config, store, table)


def _identity(provenance: Mapping[str, Any]) -> str:
    return " ".join(str(provenance[name]) for name in ("device", "date"))


def _own_table(plan: Plan, store: Store, keys: Sequence[Key]) -> LatencyTable:
    """The table that the candidates of a resumed run were timed by, as it is: measured anew it would be another, whose
    times do not compare. Raises ValueError where another one is in its place, or where it does not serve here any more
    and that is not accepted."""
    table, accept = used_table(store, plan.folder), plan.config.latency.accept
    old, new = (_identity(each) for each in (store.meta["table"]["provenance"], table.provenance.to_dict()))
    if old != new:
        raise ValueError(
            f"the run's candidates were timed by another latency table than {table.path} ({old}, now {new}): "
            "put that one back, or search anew (--out)"
        )
    table.require_origin(table.provenance.device, device.provenance(plan.device), accept)
    if KERNELS not in accept and (words := table.staleness()):
        raise ValueError(
            f"of the latency table that the run's candidates were timed by {words}: search anew (--out), or go on with "
            f"it: --set 'latency.accept=[{KERNELS}]'"
        )
    table.require(keys, accept)
    return table


# --- the folder -------------------------------------------------------------------------------------------------------


_MEANWHILE = "another run has begun in {} meanwhile: start this one again, or write to another folder (--out)"


@contextmanager
def _alone(folder: Path) -> Iterator[Path]:
    """As `whole`. Raises ValueError where another process has made the folder meanwhile."""
    try:
        with whole(folder) as place:
            yield place
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ValueError(_MEANWHILE.format(folder)) from None
        raise


def _begin(plan: Plan, asked: Mapping[str, Any], meta: Mapping[str, Any], config: str) -> None:
    """Makes the folder of a new run, with its config and its study: whole or not at all, so that whatever is there can
    be resumed. An empty folder that is there already may be a mounted volume, so that one is filled. Raises ValueError
    where another run has begun there since the plan was made."""
    folder = plan.folder
    objectives = [plan.config.metrics[name] for name in plan.config.objective_names]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        with nullcontext(folder) if folder.exists() else _alone(folder) as place:
            place.mkdir(exist_ok=True)
            if any(place.iterdir()):
                raise ValueError(_MEANWHILE.format(folder))
            storage = plan.config.storage or place / JOURNAL
            undo.callback((place / JOURNAL).unlink, missing_ok=True)
            name = create_study(storage, folder.resolve().name, objectives=objectives, fingerprint=asked, meta=meta)
            if plan.config.storage:
                undo.callback(delete_study, plan.config.storage, name)
                undo.callback((place / STUDY).unlink, missing_ok=True)
                write_atomically(place / STUDY, f"{name}\n")
            write_atomically(place / CONFIG, config)
        undo.pop_all()
