"""The study: every finished candidate, kept in Optuna. The one source of truth of a run.

A candidate becomes a trial when it has finished, in one write; one that is running is not in the study. So a driver
killed at any moment leaves nothing half done.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError, ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.study import StudyDirection

from nfsearch.search.candidate import Candidate
from nfsearch.search.journal import JournalFile, check_lines, mend
from nfsearch.search.lease import Lease
from nfsearch.search.trials import Choices, from_trial, to_trial
from nfsearch.support.errors import typed_line
from nfsearch.support.lines import lock
from nfsearch.support.metrics import Metric

FORMAT = 4  # of what the study keeps; higher when older runs cannot be read any more
_OURS = "nfsearch:"  # how the names of the study's system attributes begin


class Store:
    """Reads and writes the study of one run. `create_study` makes one, `open_store` gives it to the one process that
    writes, `load_store` to whoever reads.

    What is kept of the run itself is its meta: single values are attributes that Optuna's dashboard shows, larger ones
    are attributes that it does not show."""

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        metrics: Mapping[str, Metric] | None = None,
        choices: Choices | None = None,
        lease: Lease | None = None,
    ) -> None:
        self._study, self._storage = study, storage
        self._id = storage.get_study_id_from_name(study.study_name)
        self._metrics, self._choices, self._lease = metrics or {}, choices, lease
        self._count = len(study.get_trials(deepcopy=False))
        self._held = ExitStack()
        self.objectives: tuple[str, ...] = tuple(self.meta.get("objectives", ()))

    @property
    def name(self) -> str:
        """Of the study, unique in its storage."""
        return self._study.study_name

    @property
    def meta(self) -> dict[str, Any]:
        """What is kept of the run itself."""
        large = self._storage.get_study_system_attrs(self._id)
        ours = {key.removeprefix(_OURS): value for key, value in large.items() if key.startswith(_OURS)}
        return {**self._study.user_attrs, **ours}

    def set_meta(self, key: str, value: Any) -> None:
        """Keeps a JSON value of the run itself. Raises ValueError for infinity, which JSON does not have."""
        json.dumps(value, allow_nan=False)
        self._require_lease()
        if isinstance(value, (dict, list)):
            self._storage.set_study_system_attr(self._id, _OURS + key, value)
        else:
            self._study.set_user_attr(key, value)

    @property
    def count(self) -> int:
        """How many evaluations it holds, of the search and others: the number of the next one."""
        return self._count

    def add(self, candidate: Candidate) -> None:
        """Keeps a finished candidate; on disk when this returns. Its number has to be the next one. Raises RuntimeError
        if another process has taken over."""
        if candidate.number != self._count:
            raise RuntimeError(f"candidate {candidate.number} was added where number {self._count} comes next")
        self._require_lease()
        self._study.add_trial(to_trial(candidate, self.objectives, self._metrics, self._choices))
        self._count += 1

    def candidates(self) -> list[Candidate]:
        """Those of the search, in the order in which they finished. Raises ValueError for a trial that is not ours."""
        return [found for found in self._evaluated() if found.proposal.confirms is None]

    def confirmations(self) -> list[Candidate]:
        """Further evaluations of candidates, which the search knows nothing of, in the order in which they finished.
        Raises ValueError for a trial that is not ours, and for one of a candidate that is not there."""
        searched = {found.number for found in self.candidates()}
        further = [found for found in self._evaluated() if found.proposal.confirms is not None]
        for found in further:
            if found.proposal.confirms not in searched:
                raise ValueError(
                    f"trial {found.number} of the study confirms candidate {found.proposal.confirms}, "
                    "which the study does not have"
                )
        return further

    def _evaluated(self) -> list[Candidate]:
        return [from_trial(trial) for trial in self._study.get_trials(deepcopy=False)]

    def hold(self, held: ExitStack) -> Store:
        """Has `close` let go of this."""
        self._held = held
        return self

    def close(self) -> None:
        """Lets another process write."""
        self._held.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _require_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()


def create_study(
    storage: str | Path,
    name: str,
    *,
    objectives: Sequence[Metric],
    fingerprint: Mapping[str, Any],
    meta: Mapping[str, Any] | None = None,
) -> str:
    """Makes the study of a new run and returns its name: `name`, or where a database has a study of that name already,
    one with a number behind it.

    storage: path of a journal file that is not there yet, or any Optuna URL.
    fingerprint: JSON values that a resumed run must have in common with this one (space, seed, ...).
    meta: more JSON values to keep of the run (config, versions).

    Raises ValueError for a journal that is there, a storage that cannot be opened, and values that are not JSON.
    """
    if not _is_url(storage) and Path(storage).exists():
        raise ValueError(f"{storage} is there already")
    names = [metric.name for metric in objectives]
    kept = {"objectives": names, "fingerprint": dict(fingerprint), **(meta or {}), "format": FORMAT}
    for value in kept.values():
        json.dumps(value, allow_nan=False)
    backend = _backend(storage)
    for number in itertools.count(1):
        try:
            unique = name if number == 1 else f"{name}-{number}"
            with _quiet():
                directions = [StudyDirection.MINIMIZE] * len(objectives)
                study = optuna.create_study(storage=backend, study_name=unique, directions=directions)
                study.set_metric_names([metric.label for metric in objectives])
            break
        except DuplicatedStudyError:
            continue
    store = Store(study, backend)
    for key, value in kept.items():
        store.set_meta(key, value)
    return unique


def delete_study(storage: str, name: str) -> None:
    """For whoever has just made one in a database, and found that its run cannot begin."""
    optuna.delete_study(study_name=name, storage=_backend(storage))


def open_store(
    storage: str | Path,
    name: str | None = None,
    *,
    metrics: Mapping[str, Metric],
    fingerprint: Mapping[str, Any],
    meta: Mapping[str, Any] | None = None,
    choices: Choices | None = None,
) -> Store:
    """The study of a run, for the one process that writes to it.

    name: of the study; a journal has but one.
    metrics: what candidates are measured by, by name; the objectives at least.
    meta: JSON values to keep of the run, in the place of those that are kept under the same names.

    Raises ValueError if there is no such study, if it was made with another fingerprint, if another process writes to
    it, or if it is damaged. A last line cut short by a kill is no damage: it was never acknowledged, and is dropped
    with a warning.
    """
    with ExitStack() as held:
        lease = None
        if not _is_url(storage):
            held.callback(lock(Path(storage)).close)
            mend(Path(storage))
        study, backend = _find(storage, name)
        before = Store(study, backend)
        require_same(before.meta["fingerprint"], fingerprint, storage)
        if _is_url(storage):
            lease = Lease(backend, backend.get_study_id_from_name(study.study_name), f"study {study.study_name!r}")
            held.callback(lease.close)
        store = Store(study, backend, metrics, choices, lease)  # what was written until the lease was taken counted
        for key, value in (meta or {}).items():
            store.set_meta(key, value)
        return store.hold(held.pop_all())


def load_store(storage: str | Path, name: str | None = None) -> Store:
    """The study of a run, to read; also one that is being written. Raises ValueError if there is none or it is
    damaged, and FileNotFoundError if there is no such file."""
    if not _is_url(storage):
        check_lines(Path(storage), Path(storage).read_bytes())
    return Store(*_find(storage, name))


# --- the storage -------------------------------------------------------------------------------------------------


def _is_url(storage: str | Path) -> bool:
    return isinstance(storage, str) and "://" in storage


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna tells on stderr of every study that it makes, and that names of metrics are experimental."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(level)


def _backend(storage: str | Path) -> BaseStorage:
    try:
        if _is_url(storage):
            return RDBStorage(str(storage))
        return JournalStorage(JournalFile(Path(storage)))
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"cannot open the study {storage}: {typed_line(error)}") from error


def _find(storage: str | Path, name: str | None) -> tuple[optuna.Study, BaseStorage]:
    """The study of this name; of a journal, the only one. Raises ValueError unless it is one of this nfsearch."""
    file = str(storage).removeprefix("sqlite:///")
    file = file.partition("?")[0] if file != storage else file  # of a URL, without its options
    if (file != storage or not _is_url(storage)) and not Path(file).is_file():  # opening it would make one
        raise FileNotFoundError(f"there is no study {storage}")
    backend = _backend(storage)
    names = optuna.get_all_study_names(backend)
    if name is None and len(names) == 1:
        name = names[0]
    if name not in names:
        held = f"its studies: {', '.join(names)}" if names else "no study is in it"
        raise ValueError(f"{storage} holds no run of nfsearch{f' called {name!r}' if name else ''} ({held})")
    study = optuna.load_study(study_name=name, storage=backend)
    meta = Store(study, backend).meta
    if "fingerprint" not in meta:
        raise ValueError(f"{storage} holds the study {name!r}, which is not one of nfsearch")
    if meta.get("format") != FORMAT:
        raise ValueError(
            f"{storage} holds a run of another version of nfsearch (format {meta.get('format', 1)}, this one reads "
            f"{FORMAT}): read it with that version, or search anew (--out)"
        )
    return study, backend


def require_same(then: Mapping[str, Any], now: Mapping[str, Any], run: str | Path) -> None:
    """Raises ValueError, naming each setting that differs, unless a run is to go on with the settings it began with."""
    before, after = (dict(_leaves(json.loads(json.dumps(values)))) for values in (then, now))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]  # what is missing is null
    if keys:
        changes = "; ".join(f"{key} was {_short(before.get(key))} and is now {_short(after.get(key))}" for key in keys)
        raise ValueError(f"{run} was made with other settings ({changes}): use those, or search anew (--out)")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else text[:200] + " ..."
