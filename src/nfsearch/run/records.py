"""What the study keeps of a run besides candidates, and the result that is read back from it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from nfsearch.latency_lut import LatencyTable, load_table
from nfsearch.latency_lut.agreement import agreement_of
from nfsearch.latency_lut.verification import Check, Verification
from nfsearch.proxies import TokenSource
from nfsearch.report.result import ConfigRecord, Run, RunResult, SpaceRecord, TableRecord, build_result
from nfsearch.run.config import Config, validated
from nfsearch.run.yaml_file import YamlFile
from nfsearch.search.study import Store
from nfsearch.space import SearchSpace, SpaceSettings
from nfsearch.support.versions import versions

CONFIG, JOURNAL, STUDY, TABLE = "config.yaml", "study.journal", "study.name", "latency.parquet"  # in a run's folder
TIMED = "timed"  # what the study keeps of whole models: digest -> workload -> the check, or null: did not fit
_COUNTABLE = 10**300  # a number of JSON; nor does Python read one of more than 4,300 digits


def study_place(config: Config, folder: Path) -> tuple[str | Path, str | None]:
    """The storage of a run's study and, for a database of many runs, its name there, which the folder keeps in a file
    of its own. Raises ValueError if it has no such file."""
    if not config.storage:
        return folder / JOURNAL, None
    if not (folder / STUDY).is_file():
        raise ValueError(f"{folder} does not say which study of {config.storage} is its own: it has no {STUDY}")
    return config.storage, (folder / STUDY).read_text(encoding="utf-8").strip()


def run_meta(config: Config, file: YamlFile, space: SearchSpace, device: str) -> dict[str, Any]:
    count = space.count()
    record = SpaceRecord(
        notation=config.space.layers,
        where=config.space.where,
        count=count if count < _COUNTABLE else None,
        widths=list(space.widths),
        fit_width=space.fit_width,
        limits=config.space.limits.model_dump(mode="json", exclude_none=True),
        serves=config.space.serves,
    )
    return {
        "status": "running",
        "device": device,
        "command": shlex.join(["nfsearch", *sys.argv[1:]]),
        "versions": versions(),
        "config": {"text": file.text, "resolved": config.model_dump(mode="json")},
        "space": record.model_dump(mode="json"),
    }


def fingerprint(config: Config) -> dict[str, Any]:
    """What a resumed run must have in common with its beginning; more evaluations, other workers, a new check or a
    table that is accepted as it is are fine."""
    values = config.model_dump(mode="json", exclude={"workers", "storage"})
    values["objectives"] = list(config.objective_names)
    for name in ("serves", "tied_head"):  # runs that began before there were such settings have none
        if values["space"][name] == SpaceSettings.model_fields[name].default:
            del values["space"][name]
    del values["search"]["evaluations"], values["latency"]["verify"], values["latency"]["trust"]
    if "keep_gb" in values["proxy"]:  # likewise not left out, as is `accept` below
        values["proxy"]["keep_gb"] = type(config.proxy).model_fields["keep_gb"].default
    values["latency"]["accept"] = []  # and not left out: runs that began before it could be changed have it
    return values


def config_text(file: YamlFile, source: Path | None, assignments: Sequence[str]) -> str:
    """The config as the folder keeps it: the text that was given, or its values, where some were assigned, or where
    paths were not absolute, which elsewhere would mean other files."""
    if YamlFile(file.text, file.name).values == file.values:
        return file.text
    changes = [f"--set {shlex.quote(assignment)}" for assignment in assignments]
    values = yaml.safe_dump(file.values, sort_keys=False, allow_unicode=True)
    comment = f"{' '.join([str(source), *changes])}, local paths made absolute".replace("\n", "\n# ")
    return f"# {comment}\n{values}"


def table_meta(table: LatencyTable, folder: Path) -> dict[str, Any]:
    path, folder = (table.path or folder).resolve(), folder.resolve()
    return TableRecord(
        path=str(path.relative_to(folder) if path.is_relative_to(folder) else path),
        rows=len(table.rows),
        provenance=table.provenance.to_dict(),
    ).model_dump(mode="json")


class _Kept(BaseModel):
    """What the study keeps of the run itself, as `run_meta` and the search have written it."""

    run: Run
    config: ConfigRecord
    space: SpaceRecord
    objectives: list[str]
    sources: list[TokenSource] = []
    table: TableRecord | None = None
    verification: Verification | None = None
    timed: dict[str, dict[str, Check | None]] = {}


def _kept(store: Store) -> _Kept:
    """Raises ValueError for a study that holds something else."""
    meta = store.meta
    if missing := {"status", "started", "device", "command", "versions", "config", "space"} - meta.keys():
        raise ValueError(f"the study {store.name!r} is no whole run: it lacks {', '.join(sorted(missing))}")
    run = {"seconds": 0.0} | {name: meta[name] for name in Run.model_fields if name in meta}
    try:
        return _Kept.model_validate({**meta, "run": run})
    except ValidationError as error:
        first = error.errors()[0]
        place, found = ".".join(map(str, first["loc"])), f"{first['input']!r:.40}"
        raise ValueError(f"the study {store.name!r} is no run: {place}: {first['msg']}, found {found}") from None


def used_table(store: Store, folder: Path) -> LatencyTable:
    """The latency table of a run that has one. Raises OSError or ValueError if it is not where it was."""
    table = _kept(store).table
    assert table is not None
    return load_table(folder / table.path, table.provenance["device"])


def _table_record(kept: _Kept, config: Config) -> TableRecord | None:
    if kept.table is None:
        return None
    found, pairs = kept.verification, dict[str, list[tuple[float, float]]]()
    for checks in kept.timed.values():
        for name, check in checks.items():
            if check:
                pairs.setdefault(name, []).append((check.estimated_ms, check.measured_ms))
    complaints = found.complaints(config.latency.trust) if found else []
    return kept.table.model_copy(
        update={
            "verification": found,
            "trusted": not complaints if found and found.checks else None,
            "trust": config.latency.trust,
            "complaints": complaints,
            "timed": {name: agreement_of(each) for name, each in pairs.items()},
        }
    )


def result_of(store: Store, *, measured: bool = True) -> RunResult:
    """What the study of a run holds; only estimated times unless `measured`. Raises ValueError for a study of other
    extensions than those that are here."""
    kept = _kept(store)
    config = validated(kept.config.resolved)
    return build_result(
        store.candidates(),
        run=kept.run,
        config=kept.config,
        space=kept.space,
        sources=kept.sources,
        metrics=list(config.metrics.values()),
        objectives=kept.objectives,
        limits=config.limit_values,
        population=config.search.population,
        table=_table_record(kept, config),
        storage=config.storage or JOURNAL,
        timings=kept.timed if measured else {},
        confirmations=store.confirmations(),
    )
