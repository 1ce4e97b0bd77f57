"""What runs inside a worker process. Neither torch nor ray is imported here: the proxy brings what it needs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nfsearch.proxies import Job, Proxy
from nfsearch.search.executor import Cancelled, Outcome, attempt, described


class Worker:
    """An actor that keeps one proxy warm. `reports` and `cancel` answer while `evaluate` runs in another thread."""

    def __init__(self, proxy: Proxy, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
        self._proxy, self._threads = proxy, threads
        self._reports: list[tuple[int, float]] = []
        self._job = self._cancelled = ""  # digests of the running job, and of the one to end

    def start(self) -> str | None:
        """Prepares the proxy. Returns what went wrong, or None."""
        try:
            self._proxy.start()
        except Exception as error:
            return described(error)
        return None

    def evaluate(self, job: Job) -> tuple[Outcome, int]:
        """How the job ended, and the bytes of memory that the process holds then."""
        self._reports, self._job = [], job.digest
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self._threads)  # holds for the calling thread, and each call may have another
        return attempt(self._proxy, job, self._report), resident_bytes()

    def reports(self, known: int) -> list[tuple[int, float]]:
        """The reports of the running job after the first `known` ones."""
        return self._reports[known:]

    def cancel(self, job: str) -> None:
        """Ends the job of this digest, if it is the running one, at its next report."""
        self._cancelled = job

    def _report(self, tokens: int, loss: float) -> None:
        self._reports.append((tokens, loss))
        if self._cancelled == self._job:
            raise Cancelled


def resident_bytes() -> int:
    """Memory of this process in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
