"""`nfsearch confirm`: the finalists of a search trained again with other seeds, and longer if asked.

Each training is a further evaluation of a candidate, kept in the study of the run when it ends. So a confirmation that
was interrupted or killed goes on with what lacks when it is called again, what failed is tried again, and one with
more finalists or seeds adds just those.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from pydantic import ValidationError

from nfsearch.proxies import Fidelity, Job
from nfsearch.report.result import CandidateRecord, RunResult
from nfsearch.run.config import Config, validated
from nfsearch.run.finalists import finalists, time_whole
from nfsearch.run.finished import open_run
from nfsearch.run.records import result_of, study_place, used_table
from nfsearch.run.summary import print_summary
from nfsearch.run.tables import proxy_of, training_kind
from nfsearch.run.work import work
from nfsearch.search import EXECUTORS, Executor, History, Limits, Proposal
from nfsearch.search.loop import Loop
from nfsearch.search.progress import Progress
from nfsearch.search.strategy import Exhausted, SearchSettings
from nfsearch.search.study import Store, open_store
from nfsearch.support.errors import WorkFailed
from nfsearch.support.interrupt import interruptible
from nfsearch.support.terminal import duration, progress_display, say


def confirm(folder: Path, *, top: int, seeds: int, tokens: int | None) -> int:
    """Trains the `top` finalists of the run in `folder` with `seeds` seeds that the search did not use, on `tokens`
    tokens (None: as many as the search), and writes the files of the run anew. Returns the exit status.

    Raises ValueError or OSError for wrong input, before anything is written, and WorkFailed for what fails later.
    """
    result = result_of(open_run(folder))
    config = _config(result, tokens)
    proxy = proxy_of(config)
    _check(result, config, proxy.fidelity, tokens)
    executor = EXECUTORS.find(config.workers.executor)(config.workers, proxy, training_kind(config))
    space = config.space.build(proxy.vocab)
    with open_store(
        *study_place(config, folder),
        metrics=config.metrics,
        fingerprint=open_run(folder).meta["fingerprint"],
        choices=lambda answers: {question.name: question.options for question in space.build(answers).questions},
    ) as store:
        options = ["--top", str(top), "--seeds", str(seeds), *(["--tokens", str(tokens)] if tokens else [])]
        with work(folder, store, shlex.join(["nfsearch", "confirm", str(folder), *options])):
            chosen = finalists(store, result_of(store), top)
            time_whole(config, store, lambda: used_table(store, folder), chosen)
            first = config.search.seed + 1
            last = _train(store, executor, _proposals(store, chosen, proxy.fidelity, range(first, first + seeds)))
        result = result_of(store)
    print_summary(result, folder, proxy.fidelity)
    if last.ended:
        say(f"The confirmation ended early: {last.ended}")
    if last.history and last.count("failed") == len(last.history):
        raise WorkFailed(f"all {len(last.history)} trainings failed, the first with: {last.history[0].error}")
    return 0


def _config(result: RunResult, tokens: int | None) -> Config:
    """The config of a run, for so many tokens; a worker's time grows with them. Raises ValueError."""
    resolved = dict(result.config.resolved)
    before = resolved["proxy"].get("tokens")
    if tokens is None:
        return validated(resolved)
    if not before:
        raise ValueError(f"the proxy of this run ({resolved['proxy']['kind']}) has no tokens: --tokens is not for it")
    proxy = {**resolved["proxy"], "tokens": tokens}
    if rungs := proxy.get("rungs"):
        proxy["rungs"] = [each for each in rungs if each < tokens]
    try:
        config = validated({**resolved, "proxy": proxy})
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"--tokens {tokens}: {first.get('ctx', {}).get('error', first['msg'])}") from None
    if (timeout := resolved["workers"].get("timeout_s")) is None:
        return config
    longer = timeout * max(1.0, tokens / before)
    return config.model_copy(update={"workers": config.workers.model_copy(update={"timeout_s": longer})})


def _check(result: RunResult, config: Config, fidelity: Fidelity, tokens: int | None) -> None:
    """Raises ValueError where there is nothing to confirm, or not at this fidelity."""
    if not result.admitted():
        raise ValueError("no candidate of this run has finished within its limits, so there is nothing to confirm")
    measured = {metric.name for metric in config.scores}
    if not measured.intersection(result.objectives):
        raise ValueError(f"no objective of this run ({', '.join(result.objectives)}) hangs on a seed")
    before = result.admitted()[0].fidelity
    if tokens is None and before != fidelity:
        raise ValueError(
            f"the data has changed since the search, or the device (it was {before}, data {before.data}; now "
            f"{fidelity}, data {fidelity.data}): --tokens {before.tokens} confirms the finalists as they train now"
        )


class _Confirmations:
    """Proposes what is known from the start: other seeds of finalists."""

    Settings: ClassVar[type[SearchSettings]] = SearchSettings

    def __init__(self, proposals: Sequence[Proposal]) -> None:
        self.proposals = proposals

    def propose(self, index: int, history: History, running: Collection[str] = ()) -> Proposal:
        """See `nfsearch.search.Strategy`."""
        if index >= len(self.proposals):
            raise Exhausted("every finalist has its seeds")
        return self.proposals[index]


def _proposals(
    store: Store, chosen: Sequence[CandidateRecord], fidelity: Fidelity, seeds: Sequence[int]
) -> list[Proposal]:
    """The evaluations that lack or failed, a seed after the other, so that an early end leaves as many seeds to each
    finalist."""
    originals = {candidate.number: candidate.proposal for candidate in store.candidates()}
    known = {each.proposal.job.digest for each in store.confirmations() if each.state != "failed"}
    lacking: list[Proposal] = []
    for seed in seeds:
        for record in chosen:
            original = originals[record.number]
            job = Job(original.architecture, fidelity, seed)
            if job.digest not in known:
                lacking.append(
                    replace(
                        original,
                        index=len(lacking),
                        job=job,
                        origin="confirmation",
                        parents=(record.number,),
                        refused={},
                        confirms=record.number,
                    )
                )
    return lacking


def _train(store: Store, executor: Executor, proposals: Sequence[Proposal]) -> Progress:
    """Evaluates what is proposed, and tells how that ended. Raises KeyboardInterrupt after an interrupt, between two
    steps."""
    with interruptible() as interrupted, progress_display() as show:
        loop = Loop(
            _Confirmations(proposals),
            store,
            executor,
            Limits(),
            evaluations=len(proposals),
            history=(),
            stop=interrupted.is_set,
        )
        last = loop.run(lambda now: show(_line(now), _line(now), False))
        show(_line(last), _line(last), True)
    if interrupted.is_set():
        raise KeyboardInterrupt
    return last


def _line(progress: Progress) -> str:
    failed = f", {count} failed" if (count := progress.count("failed")) else ""
    done = f"training finalists with other seeds: {progress.standing.finished} of {progress.evaluations}{failed}"
    left = progress.evaluations - progress.standing.finished
    return done + (f", {len(progress.running)} running, {duration(progress.eta_seconds)} left" if left else "")
