"""The study: every finished candidate, kept in Optuna. The one source of truth of a run.

A candidate becomes a trial when it has finished, in one write; one that is running is not in the study. So a driver
killed at any moment leaves nothing half done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from nfsearch.search.candidate import Candidate
from nfsearch.search.journal import NoLock, check_lines, lock, mend
from nfsearch.search.trials import Choices, from_trial, to_trial
from nfsearch.support.errors import typed_line

NAME = "nfsearch"  # of the study, where the caller gives no other
FORMAT = 2  # of what the study keeps; higher when older runs cannot be read any more
_FORMAT = "format"


class Store:
    """Reads and writes the study of one run. Use `open_store` to write one and `load_store` to read one."""

    def __init__(self, study: optuna.Study, journal: BinaryIO | None = None, choices: Choices | None = None) -> None:
        self._study, self._journal, self._choices = study, journal, choices
        self._count = len(study.get_trials(deepcopy=False))

    @property
    def objectives(self) -> tuple[str, ...]:
        return tuple(self.meta["objectives"])

    @property
    def meta(self) -> dict[str, Any]:
        """What is kept of the run itself."""
        return dict(self._study.user_attrs)

    def set_meta(self, key: str, value: Any) -> None:
        """Keeps a JSON value of the run itself."""
        self._study.set_user_attr(key, value)

    @property
    def count(self) -> int:
        """How many evaluations it holds, of the search and others: the number of the next one."""
        return self._count

    def add(self, candidate: Candidate) -> None:
        """Keeps a finished candidate; on disk when this returns. Its number has to be the next one."""
        if candidate.number != self._count:
            raise RuntimeError(f"candidate {candidate.number} was added where number {self._count} comes next")
        self._study.add_trial(to_trial(candidate, self.objectives, self._choices))
        self._count += 1

    def candidates(self) -> list[Candidate]:
        """Those of the search, in the order in which they finished. Raises ValueError for a trial that is not ours."""
        return [found for found in self._evaluated() if found.proposal.confirms is None]

    def confirmations(self) -> list[Candidate]:
        """Further evaluations of candidates, which the search knows nothing of, in the order in which they finished."""
        return [found for found in self._evaluated() if found.proposal.confirms is not None]

    def _evaluated(self) -> list[Candidate]:
        return [from_trial(trial) for trial in self._study.get_trials(deepcopy=False)]

    def close(self) -> None:
        """Lets another process write."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_store(
    storage: str | Path,
    *,
    objectives: Sequence[str],
    fingerprint: Mapping[str, Any],
    meta: Mapping[str, Any] | None = None,
    choices: Choices | None = None,
    resume: bool = False,
    name: str = NAME,
) -> Store:
    """The study to write to: a new one, or with `resume` the one that is there.

    storage: path of the journal file, or any Optuna URL. `name` tells runs apart that share a database.
    fingerprint: JSON values that a resumed run must have in common with the first (space, objectives, seed, ...).
    meta: more JSON values to keep of the run (config, versions); written anew on resuming.

    Raises ValueError if a study with results is there and `resume` is not set, if what is there was made with another
    fingerprint, if another process writes to the journal, or if it is damaged. A last line cut short by a kill is no
    damage: it was never acknowledged, and is dropped with a warning. Resuming where nothing is, starts anew.
    """
    journal = None if _is_url(storage) else lock(Path(storage))
    try:
        if journal is not None:
            mend(Path(storage))
        backend = _backend(storage)
        study = _find(backend, storage, name)
        wanted = json.loads(json.dumps({"objectives": list(objectives), **fingerprint}))
        if study is not None and study.get_trials(deepcopy=False):
            if not resume:
                raise ValueError(
                    f"{storage} holds a run with {len(study.get_trials(deepcopy=False))} candidates: "
                    "go on with it (--resume), or write to another folder (--out)"
                )
            _check_format(study, storage)
            _check_fingerprint(study.user_attrs.get("fingerprint", {}), wanted, storage)
        else:
            if study is not None:
                optuna.delete_study(study_name=name, storage=backend)
            with _quiet():
                directions = [optuna.study.StudyDirection.MINIMIZE] * len(objectives)
                study = optuna.create_study(storage=backend, study_name=name, directions=directions)
            study.set_user_attr(_FORMAT, FORMAT)
            study.set_user_attr("objectives", list(objectives))
            study.set_user_attr("fingerprint", wanted)
        for key, value in (meta or {}).items():
            study.set_user_attr(key, value)
        return Store(study, journal, choices)
    except BaseException:
        if journal is not None:
            journal.close()
        raise


def load_store(storage: str | Path, name: str = NAME) -> Store:
    """The study of a run, to read; also one that is being written. Raises ValueError if there is none or it is
    damaged, and FileNotFoundError if there is no such file."""
    if not _is_url(storage):
        check_lines(Path(storage), Path(storage).read_bytes())
    study = _find(_backend(storage), storage, name)
    if study is None or "objectives" not in study.user_attrs:
        raise ValueError(f"{storage} holds no run of nfsearch")
    _check_format(study, storage)
    return Store(study)


# --- the storage -------------------------------------------------------------------------------------------------


def _is_url(storage: str | Path) -> bool:
    return isinstance(storage, str) and "://" in storage


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna tells on stderr of every study that it makes."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


def _backend(storage: str | Path) -> BaseStorage:
    try:
        if _is_url(storage):
            return optuna.storages.get_storage(str(storage))
        return JournalStorage(JournalFileBackend(str(storage), lock_obj=NoLock(str(storage))))
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"cannot open the study {storage}: {typed_line(error)}") from error


def _find(backend: BaseStorage, storage: str | Path, name: str) -> optuna.Study | None:
    names = optuna.get_all_study_names(backend)
    if name in names:
        return optuna.load_study(study_name=name, storage=backend)
    if names and not _is_url(storage):
        raise ValueError(f"{storage} holds the study {names[0]!r}, which is not one of nfsearch")
    return None


def _check_format(study: optuna.Study, storage: str | Path) -> None:
    found = study.user_attrs.get(_FORMAT, 1)
    if found != FORMAT:
        raise ValueError(
            f"{storage} holds a run of another version of nfsearch (format {found}, this one reads {FORMAT}): "
            "read it with that version, or search anew (--out)"
        )


def _check_fingerprint(then: Mapping[str, Any], now: Mapping[str, Any], storage: str | Path) -> None:
    before, after = dict(_leaves(then)), dict(_leaves(now))
    keys = [key for key in {**before, **after} if before.get(key, ...) != after.get(key, ...)]
    if keys:
        changes = "; ".join(f"{key} was {_short(before.get(key))} and is now {_short(after.get(key))}" for key in keys)
        raise ValueError(f"{storage} was made with other settings ({changes}): use those, or another folder (--out)")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + " ..."
