"""`nfsearch study fidelity`: does a short training order architectures as a long one does?

    DIR/ config.yaml   architectures.json   share-K-of-N.journal
         results.parquet   predictors.csv   operators.csv   report.md   figure.png

The journals are the truth; all below them is made from them, by `nfsearch study report DIR`, too.
"""

from __future__ import annotations

import fcntl
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from nfsearch.latency_lut import LatencyTable, keys_for
from nfsearch.latency_lut.profiler import rows_of
from nfsearch.proxies import Proxy
from nfsearch.run.log import LOG, logged
from nfsearch.run.records import CONFIG, TABLE, config_text
from nfsearch.run.sources import tell_sources
from nfsearch.run.tables import budgets_of, check_layers, given_table, measure, training_kind
from nfsearch.space import Architecture, SearchSpace
from nfsearch.studies.config import MOST, StudyConfig, load_study, require_same
from nfsearch.studies.draw import ARCHITECTURES, Drawn, draw, read_architectures
from nfsearch.studies.journal import Journal, read
from nfsearch.studies.predictors import FEWEST
from nfsearch.studies.training import Sitting, trainings
from nfsearch.support.files import write_atomically
from nfsearch.support.interrupt import interruptible
from nfsearch.support.terminal import counted, say

_LOCK = ".beginning"


def study_fidelity(config_path: Path, folder: Path, share: str, assignments: Sequence[str]) -> int:
    """Trains what lacks of a share of a study; where nothing lacks of any share, writes its report. Returns the exit
    status. Raises ValueError or OSError for wrong input, before anything is written, and WorkFailed later."""
    part, config = _share(share), load_study(config_path, assignments)
    begun = (folder / ARCHITECTURES).exists()
    if begun and (folder / CONFIG).exists():
        require_same(load_study(folder / CONFIG), config, folder)
    elif not begun and folder.exists() and {path.name for path in folder.iterdir()} - {_LOCK, LOG, TABLE}:
        raise ValueError(f"{folder} is not empty, and holds no study: write to another folder (-o)")
    proxies = {name: config.proxy(name) for name in config.study.recipes}
    space = config.run.space.build(max(proxy.vocab for proxy in proxies.values()))
    check_layers(config.run, space)
    for name, proxy in proxies.items():
        try:
            proxy.check(space)
        except ValueError as error:
            raise ValueError(config.file.complaint(["study", "recipes", name], str(error))) from None
    if begun:
        _require_same_trainings(folder, proxies)
    drawn = None if begun else _drawn(config, space)
    folder.mkdir(parents=True, exist_ok=True)
    with logged(folder), interruptible() as interrupted:
        with _alone(folder):
            architectures = [each.architecture for each in _kept(folder, config, space, drawn)]
            write_atomically(folder / CONFIG, config_text(config.file, config_path, assignments))
        work = trainings(config.study, architectures, part)
        tell_sources(proxies[config.study.reference.recipe])
        for proxy in proxies.values():
            proxy.start()
        if training_kind(config.run) == "cpu":
            _share_cores(part[1])
        try:
            with Journal(folder, part) as journal:
                Sitting(folder, proxies, work, training_kind(config.run), interrupted.is_set).run(journal)
        except KeyboardInterrupt:
            only = ["--share", share] if part != (1, 1) else []
            again = shlex.join(["nfsearch", "study", "fidelity", str(config_path), "-o", str(folder), *only])
            say(f"Interrupted. What finished is kept; the same command goes on: {again}")
            raise
    known = read(folder)
    if left := sum(bool(training.lacking(known)) for training in trainings(config.study, architectures)):
        say(f"{counted(left, 'training')} left to other shares; `nfsearch study report {folder}` tells what there is")
        return 0
    from nfsearch.studies.report import print_report

    print_report(folder)
    return 0


def _require_same_trainings(folder: Path, proxies: Mapping[str, Proxy]) -> None:
    """Raises ValueError where a study holds losses that a recipe, as it is now, would not give: of other data, or of
    something else that had its name."""
    for (_, name, _), entries in read(folder).items():
        for entry in entries.values() if name in proxies else ():
            then, now = entry.fidelity, replace(proxies[name].fidelity, tokens=entry.tokens)
            if then.data != now.data:
                raise ValueError(f"{folder} holds losses on other data ({then.data}) than is here ({now.data})")
            if then != now:
                raise ValueError(
                    f"{folder} holds losses of another recipe {name!r} ({then}) than this one ({now}): give this one "
                    "another name"
                )


def _share_cores(shares: int) -> None:
    """Leaves each of the processes that are at work on a study its part of this machine's cores: where all use all of
    them, every one takes many times as long."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // shares))


def _share(text: str) -> tuple[int, int]:
    """K and N of `K/N`."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"--share {text}: expected K/N with K from 1 to N, such as 1/4")
    return int(found[1]), int(found[2])


def _drawn(config: StudyConfig, space: SearchSpace) -> list[Drawn] | None:
    """The architectures of a study; None where the table that they are drawn by is yet to be measured."""
    if config.study.architectures == "all":
        return _all(config, space)
    table = given_table(config.run)
    return None if table is None else _draw(config, space, table)


def _all(config: StudyConfig, space: SearchSpace) -> list[Drawn]:
    """Every member of the space once, those that break a limit, or that it does not serve, left out. Raises ValueError
    for too many, or too few to be put in an order."""
    members: list[Architecture] = []
    count = space.count()
    if count <= MOST:
        found: dict[str, Architecture] = {}  # by digest, as several notations may be one model's
        for built in dict.fromkeys(each.architecture for each in space.enumerate()):
            if built.digest not in found and space.locate(built) is not None:
                found[built.digest] = built
        members = [*found.values()]
        count = len(members)
    if not FEWEST <= count <= MOST:
        text = f"the space has {count:,} members: expected {FEWEST} to {MOST:,}"
        raise ValueError(config.file.complaint(["study", "architectures"], text))
    return [Drawn(each, {}) for each in members]


def _draw(config: StudyConfig, space: SearchSpace, table: LatencyTable) -> list[Drawn]:
    """The architectures of a study. Raises ValueError where the table or the space does not give them."""
    run, study = config.run, config.study
    assert isinstance(study.architectures, int)
    table.require(
        keys_for(space, run.latency.workloads, run.latency.dtype_on(table.provenance.kind)), run.latency.accept
    )
    budgets = budgets_of(run, table)
    timed = run.limit_values.most.keys() & run.latency.workloads.keys()
    say(f"Drawing {study.architectures} architectures")
    found = draw(
        space,
        budgets,
        timed,
        number=study.architectures,
        within=study.within,
        depths=study.depths,
        seed=study.seed,
    )
    return [Drawn(each, {name: budgets.estimate(each)[name].value for name in run.latency.workloads}) for each in found]


def _kept(folder: Path, config: StudyConfig, space: SearchSpace, drawn: Sequence[Drawn] | None) -> list[Drawn]:
    """The architectures that the folder keeps; those drawn, or drawn now by a table that is measured, where it has none
    yet."""
    if not (folder / ARCHITECTURES).exists():
        if drawn is None:
            run, kind = config.run, training_kind(config.run)
            keys = rows_of(space, run.latency.workloads, run.latency.dtype_on(kind), kind)
            drawn = _draw(config, space, measure(run, keys, folder / TABLE))
        listed = [{**each.architecture.to_dict(), "latencies": dict(each.latencies)} for each in drawn]
        write_atomically(folder / ARCHITECTURES, json.dumps(listed, indent=1))
    return read_architectures(folder)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of a study at a time."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
