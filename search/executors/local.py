"""Jobs evaluated one after the other in this process: for tests, debuggers and notebooks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from typing_extensions import Self

from nfsearch.proxies import Job, Proxy
from nfsearch.search.executor import Cancelled, Ended, Handle, Reported, Running, WorkerSettings, attempt


class LocalSettings(WorkerSettings):
    """Nothing to set: there is one worker, which is this process."""


class LocalExecutor:
    """A job runs to its end within `events`; what it reports is handed over as it is reported. An error of a job fails
    that job alone, but what broke the process, such as its CUDA context, breaks those after it too. After an OSError
    the proxy is started anew, which raises if this machine lacks what it needs."""

    Settings: ClassVar[type[WorkerSettings]] = LocalSettings
    workers = 1

    def __init__(self, settings: WorkerSettings, proxy: Proxy, device: str) -> None:
        self._proxy = proxy
        self._waiting: list[Job] = []
        self._running: tuple[Job, float] | None = None  # and when it began
        self._cancelled = False

    def __enter__(self) -> Self:
        self._proxy.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()

    @property
    def free(self) -> int:
        return 0 if self._waiting or self._running else 1

    @property
    def running(self) -> Sequence[Running]:
        if self._running is None:
            return ()
        job, began = self._running
        return (Running(job, time.monotonic() - began),)

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def cancel(self, job: Job) -> None:
        if self._running and self._running[0] == job:
            self._cancelled = True
        elif job in self._waiting:
            self._waiting.remove(job)

    def events(self, handle: Handle, timeout: float) -> None:
        if not self._waiting:
            return
        job, began = self._waiting.pop(0), time.monotonic()
        self._running, self._cancelled = (job, began), False

        def report(tokens: int, loss: float) -> None:
            handle(Reported(job, tokens, loss))
            if self._cancelled:
                raise Cancelled

        try:
            outcome = attempt(self._proxy, job, report)
        finally:
            self._running = None
        if outcome.again:
            self._proxy.start()
        if not self._cancelled:
            handle(Ended(job, outcome.evaluation, outcome.error, time.monotonic() - began))
