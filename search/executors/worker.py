"""What runs inside a worker process. Neither torch nor ray is imported here: the proxy brings what it needs."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from nfsearch.proxies import Job, Proxy
from nfsearch.search.executor import Cancelled, Outcome, attempt, described

LOOK = 0.05  # seconds between two looks at the memory that a running job holds


@dataclass(frozen=True)
class StartError:
    """Why a worker could not start, and whether its machine lacks something: then no other can start there either."""

    text: str
    missing: bool


class Worker:
    """An actor that keeps one proxy warm. `reports` and `cancel` answer while `evaluate` runs in another thread.

    most: bytes of memory that the process may hold while a job runs; None: any.
    """

    def __init__(self, proxy: Proxy, threads: int, most: float | None = None) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
        self._proxy, self._threads, self._most = proxy, threads, most
        self._reports: list[tuple[int, float]] = []
        self._job = self._cancelled = ""  # digests of the running job, or the last one, and of the one to end

    def arrived(self) -> bool:
        """Answers when there is a process."""
        return True

    def start(self) -> StartError | None:
        """Prepares the proxy. Returns what went wrong, or None."""
        try:
            self._proxy.start()
        except Exception as error:
            return StartError(described(error), isinstance(error, OSError))
        return None

    def evaluate(self, job: Job) -> tuple[Outcome, int]:
        """How the job ended, and the bytes of memory that the process holds then. One that takes more memory than is
        allowed is not waited for: it runs on until its process is ended."""
        fresh = not self._job
        self._reports, self._job = [], job.digest
        ended: list[Outcome] = []
        thread = threading.Thread(target=lambda: ended.append(self._attempt(job)), daemon=True)
        thread.start()
        while not ended and thread.is_alive():
            thread.join(LOOK)
            resident = resident_bytes()
            if self._most and resident > self._most and not ended:
                error = f"it took {resident / 1e9:.2f} GB of memory; workers.max_memory_gb is {self._most / 1e9:g}"
                return Outcome(None, error, sound=False, again=not fresh), resident
        return ended[0], resident_bytes()

    def reports(self, known: int) -> list[tuple[int, float]]:
        """The reports of the running job after the first `known` ones."""
        return self._reports[known:]

    def cancel(self, job: str) -> None:
        """Ends the job of this digest, if it is the running one, at its next report."""
        self._cancelled = job

    def _attempt(self, job: Job) -> Outcome:
        if torch := sys.modules.get("torch"):
            torch.set_num_threads(self._threads)  # holds for the calling thread
        return attempt(self._proxy, job, self._report)

    def _report(self, tokens: int, loss: float) -> None:
        self._reports.append((tokens, loss))
        if self._cancelled == self._job:
            raise Cancelled


def resident_bytes() -> int:
    """Memory of this process in RAM."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
