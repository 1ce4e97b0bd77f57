"""What the study keeps of a run besides candidates, and the result that is read back from it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

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
    """What a resumed run must have in common with its beginning; more evaluations, other workers or a new check are
    fine."""
    values = config.model_dump(mode="json", exclude={"workers", "storage"})
    values["objectives"] = list(config.objective_names)
    for name in ("serves", "tied_head"):  # runs that began before there were such settings have none
        if values["space"][name] == SpaceSettings.model_fields[name].default:
            del values["space"][name]
    del values["search"]["evaluations"], values["latency"]["verify"], values["latency"]["trust"]
    return values


def config_text(file: YamlFile, source: Path | None, assignments: Sequence[str]) -> str:
    """The config as the folder keeps it: the text that was given, or its values, where some were assigned, or where
    paths were not absolute, which elsewhere would mean other files."""
    if YamlFile(file.text, file.name).values == file.values:
        return file.text
    changes = [f"--set {shlex.quote(assignment)}" for assignment in assignments]
    values = yaml.safe_dump(file.values, sort_keys=False, allow_unicode=True)
    return f"# {' '.join([str(source), *changes])}, local paths made absolute\n{values}"


def table_meta(table: LatencyTable, folder: Path) -> dict[str, Any]:
    path, folder = (table.path or folder).resolve(), folder.resolve()
    return TableRecord(
        path=str(path.relative_to(folder) if path.is_relative_to(folder) else path),
        rows=len(table.rows),
        provenance=table.provenance.to_dict(),
    ).model_dump(mode="json")


def used_table(store: Store, folder: Path) -> LatencyTable:
    """The latency table of a run. Raises OSError or ValueError if it is not where it was."""
    return load_table(folder / store.meta["table"]["path"], store.meta["table"]["provenance"]["device"])


def timings_of(store: Store) -> dict[str, dict[str, Check | None]]:
    """The whole models that a run has timed: see `nfsearch.report.result.Timings`."""
    kept = store.meta.get(TIMED, {})
    return {
        digest: {name: check and Check.model_validate(check) for name, check in found.items()}
        for digest, found in kept.items()
    }


def _table_record(store: Store, config: Config) -> TableRecord | None:
    meta = store.meta
    if not meta.get("table"):
        return None
    kept = meta.get("verification")
    found = Verification.model_validate(kept) if kept else None
    pairs: dict[str, list[tuple[float, float]]] = {}
    for checks in timings_of(store).values():
        for name, check in checks.items():
            if check:
                pairs.setdefault(name, []).append((check.estimated_ms, check.measured_ms))
    complaints = found.complaints(config.latency.trust) if found else []
    return TableRecord(
        **{
            **meta["table"],
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
    meta = store.meta
    if missing := {"status", "started", "device", "command", "versions", "config", "space"} - meta.keys():
        raise ValueError(f"the study {store.name!r} is no whole run of nfsearch: it lacks {', '.join(sorted(missing))}")
    resolved: Mapping[str, Any] = meta["config"]["resolved"]
    config = validated(resolved)
    return build_result(
        store.candidates(),
        run=Run(
            status=meta["status"],
            started=meta["started"],
            seconds=meta.get("seconds", 0.0),
            device=meta["device"],
            command=meta["command"],
            versions=meta["versions"],
        ),
        config=ConfigRecord(text=meta["config"]["text"], resolved=dict(resolved)),
        space=SpaceRecord(**meta["space"]),
        sources=TypeAdapter(list[TokenSource]).validate_python(meta.get("sources", [])),
        metrics=list(config.metrics.values()),
        objectives=store.objectives,
        limits=config.limit_values,
        population=config.search.population,
        table=_table_record(store, config),
        storage=resolved["storage"] or JOURNAL,
        timings=timings_of(store) if measured else {},
        confirmations=store.confirmations(),
    )
