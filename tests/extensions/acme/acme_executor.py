"""An executor: jobs in threads of this process."""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from typing_extensions import Self

from nfsearch.proxies import Job, Proxy
from nfsearch.search import WorkerSettings
from nfsearch.search.executor import Cancelled, Ended, Handle, Outcome, Reported, Running, attempt


class Threads:
    Settings, workers = WorkerSettings, 2

    def __init__(self, settings: WorkerSettings, proxy: Proxy, device: str) -> None:
        self._proxy, self._pool = proxy, ThreadPoolExecutor(self.workers)
        self._jobs: dict[Job, float] = {}  # and when each began
        self._futures: dict[Future[Outcome], Job] = {}
        self._reports: list[Reported] = []

    def __enter__(self) -> Self:
        self._proxy.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._jobs.clear()
        self._pool.shutdown(cancel_futures=True)

    @property
    def free(self) -> int:
        return self.workers - len(self._jobs)

    @property
    def running(self) -> list[Running]:
        return [Running(job, time.monotonic() - began) for job, began in self._jobs.items()]

    def submit(self, job: Job) -> None:
        def report(tokens: int, loss: float) -> None:
            if job not in self._jobs:
                raise Cancelled
            self._reports.append(Reported(job, tokens, loss))

        self._jobs[job] = time.monotonic()
        self._futures[self._pool.submit(attempt, self._proxy, job, report)] = job

    def cancel(self, job: Job) -> None:
        self._jobs.pop(job, None)

    def events(self, handle: Handle, timeout: float) -> None:
        done, _ = wait(self._futures, timeout, FIRST_COMPLETED)
        while self._reports:
            handle(self._reports.pop(0))
        for future in done:
            job, outcome = self._futures.pop(future), future.result()
            if began := self._jobs.pop(job, None):
                handle(Ended(job, outcome.evaluation, outcome.error, time.monotonic() - began))
