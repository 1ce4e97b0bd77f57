"""The study: every finished candidate, kept in Optuna. The one source of truth of a run.

A candidate becomes a trial when it has finished, in one write; one that is running is not in the study. So a driver
killed at any moment leaves nothing half done.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from nfsearch.proxies import Score
from nfsearch.search.candidate import Answers, Candidate, Proposal
from nfsearch.space import Architecture
from nfsearch.support.errors import typed_line

NAME = "nfsearch"  # of the study, where the caller gives no other
Choices = Callable[[Answers], Mapping[str, Sequence[Any]]]  # answers -> the options of each question answered

logger = logging.getLogger(__name__)


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

    def add(self, candidate: Candidate) -> None:
        """Keeps a finished candidate; on disk when this returns. Its number has to be the next one."""
        if candidate.number != self._count:
            raise RuntimeError(f"candidate {candidate.number} was added where number {self._count} comes next")
        self._study.add_trial(_to_trial(candidate, self.objectives, self._choices))
        self._count += 1

    def candidates(self) -> list[Candidate]:
        """All of them, in the order in which they finished. Raises ValueError for a trial that is not ours."""
        return [_from_trial(trial, self.objectives) for trial in self._study.get_trials(deepcopy=False)]

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
    journal = None if _is_url(storage) else _lock(Path(storage))
    try:
        if journal is not None:
            _mend(Path(storage))
        backend = _backend(storage)
        study = _find(backend, storage, name)
        wanted = json.loads(json.dumps({"objectives": list(objectives), **fingerprint}))
        if study is not None and study.get_trials(deepcopy=False):
            if not resume:
                raise ValueError(
                    f"{storage} holds a run with {len(study.get_trials(deepcopy=False))} candidates: "
                    "go on with it (--resume), or write to another folder (--out)"
                )
            _check_fingerprint(study.user_attrs.get("fingerprint", {}), wanted, storage)
        else:
            if study is not None:
                optuna.delete_study(study_name=name, storage=backend)
            with _quiet():
                directions = [optuna.study.StudyDirection.MINIMIZE] * len(objectives)
                study = optuna.create_study(storage=backend, study_name=name, directions=directions)
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
        _check_lines(Path(storage), Path(storage).read_bytes())
    study = _find(_backend(storage), storage, name)
    if study is None or "objectives" not in study.user_attrs:
        raise ValueError(f"{storage} holds no run of nfsearch")
    return Store(study)


# --- the storage -------------------------------------------------------------------------------------------------


class _NoLock(JournalFileOpenLock):
    """No lock for each write: `_lock` is held as long as the store is open. Optuna's own locks are files, which outlive
    a killed process; the next one would wait 30 seconds for them."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


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
        return JournalStorage(JournalFileBackend(str(storage), lock_obj=_NoLock(str(storage))))
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


def _lock(path: Path) -> BinaryIO:
    journal = path.open("ab")
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel lets go of it when the process ends
    except BlockingIOError:
        journal.close()
        raise ValueError(f"{path} is being written by another process: wait for it, or end it") from None
    except OSError:
        pass  # a file system without locks
    return journal


def _mend(path: Path) -> None:
    """Cuts off a last line that a kill left unfinished. Raises ValueError for any other damage.

    Optuna skips such a line when reading, but appends behind it, which spoils the next record too."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    _check_lines(path, content[:whole])
    if whole < len(content):
        logger.warning("%s: the last record was cut short (%d bytes) and is dropped", path, len(content) - whole)
        os.truncate(path, whole)


def _check_lines(path: Path, content: bytes) -> None:
    lines = content.split(b"\n")[:-1]  # what follows the last newline is no record yet
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "op_code" not in record:
            found = line[:40].decode(errors="replace")
            raise ValueError(
                f"{path}, line {number}: expected a record of an Optuna journal, found {found!r}; "
                "the file is damaged or is something else"
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


# --- candidates as trials ----------------------------------------------------------------------------------------


def _to_trial(candidate: Candidate, objectives: Sequence[str], choices: Choices | None) -> FrozenTrial:
    proposal, score = candidate.proposal, candidate.score
    options = choices(proposal.answers) if choices else {}
    done = candidate.state == "done"
    trial = optuna.trial.create_trial(
        state=TrialState.COMPLETE if done else TrialState.FAIL,
        values=[candidate.values[objective] for objective in objectives] if done else None,
        params={question: proposal.answers[question] for question in options},
        distributions={question: CategoricalDistribution(values) for question, values in options.items()},
        user_attrs={
            "notation": proposal.architecture.notation,
            "width": proposal.architecture.width,
            "digest": proposal.architecture.digest,
            "architecture": proposal.architecture.to_dict(),
            "index": proposal.index,
            "origin": proposal.origin,
            "generation": proposal.generation,
            "parents": list(proposal.parents),
            "costs": {name: list(cost) for name, cost in proposal.costs.items()},
            "refused": dict(proposal.refused),
            "answers": dict(proposal.answers),  # with params they are complete only where all choices are known
            "score": score and score.to_dict(),
            "seconds": candidate.seconds,
            "attempts": candidate.attempts,
            "error": candidate.error,
        },
    )
    if trial.datetime_complete is not None:
        trial.datetime_start = trial.datetime_complete - timedelta(seconds=candidate.seconds)
    return trial


def _from_trial(trial: FrozenTrial, objectives: Sequence[str]) -> Candidate:
    try:
        kept = trial.user_attrs
        proposal = Proposal(
            index=kept["index"],
            architecture=Architecture.from_dict(kept["architecture"]),
            answers=kept["answers"],
            origin=kept["origin"],
            generation=kept["generation"],
            parents=tuple(kept["parents"]),
            costs={name: (cost, error) for name, (cost, error) in kept["costs"].items()},
            refused=kept["refused"],
        )
        done = trial.state == TrialState.COMPLETE
        return Candidate(
            number=trial.number,
            proposal=proposal,
            state="done" if done else "failed",
            score=Score.from_dict(kept["score"]) if kept["score"] else None,
            values=dict(zip(objectives, trial.values, strict=True)) if done else {},
            seconds=kept["seconds"],
            error=kept["error"],
            attempts=kept["attempts"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"trial {trial.number} of the study is not a candidate: {typed_line(error)}") from error
