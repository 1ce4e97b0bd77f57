"""Who writes the study of a database, which has no lock of its own."""

from __future__ import annotations

import logging
import os
import platform
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage

from nfsearch.support.errors import typed_line
from nfsearch.support.terminal import say

KEY = "nfsearch:lease"  # the study's system attribute
BEAT = 5.0  # seconds between two renewals
PATIENCE = 20.0  # seconds without a renewal after which whoever held it is gone
SETTLE = 0.2  # seconds in which two processes that took it at the same time have both written it

logger = logging.getLogger(__name__)


class Lease:
    """Says in the study which process writes it, which renews that as long as it lives.

    A process of this machine that is no more is noticed at once, one of another machine when it has not renewed its
    lease for PATIENCE seconds. No clocks of two machines are compared."""

    def __init__(self, storage: BaseStorage, study: int, what: str) -> None:
        """Raises ValueError, naming `what`, if another process holds it."""
        self._storage, self._study, self._what = storage, study, what
        self._mine: dict[str, Any] = {
            "token": secrets.token_hex(8),
            "host": platform.node(),
            "machine": _machine(),
            "process": os.getpid(),
            "began": _began(os.getpid()),
        }
        self._beat = 0
        held = self._read()
        if held and self._lives(held):
            raise ValueError(f"{what} is being written by {_who(held)}: wait for it, or end it")
        self._write()
        time.sleep(SETTLE)
        held = self._read()
        if not self._holds(held):
            raise ValueError(f"{what} is being written by {_who(held)}, which began at the same time")
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises RuntimeError if another process has taken over from this one, which was asleep for too long."""
        held = self._read()
        if not self._holds(held):
            raise RuntimeError(f"{self._what} was taken over by {_who(held)}: this process did not renew its lease")

    def close(self) -> None:
        """Lets another process write."""
        self._closed.set()
        self._thread.join()
        with suppress(Exception):  # the database is gone; so is the lease, after a while
            if self._holds(self._read()):
                self._storage.set_study_system_attr(self._study, KEY, None)

    def _read(self) -> dict[str, Any]:
        return self._storage.get_study_system_attrs(self._study).get(KEY) or {}

    def _write(self) -> None:
        self._storage.set_study_system_attr(self._study, KEY, {**self._mine, "beat": self._beat})

    def _holds(self, held: dict[str, Any]) -> bool:
        return held.get("token") == self._mine["token"]

    def _renew(self) -> None:
        while not self._closed.wait(BEAT):
            try:
                if not self._holds(self._read()):
                    return  # `check` tells
                self._beat += 1
                self._write()
            except Exception as error:  # a database that cannot be reached now may be there at the next beat
                logger.warning("the lease of %s could not be renewed: %s", self._what, typed_line(error))

    def _lives(self, held: dict[str, Any]) -> bool:
        if held.get("machine") == self._mine["machine"]:
            return held.get("began") == _began(int(held["process"]))
        say(f"{self._what} was being written by {_who(held)}; looking for {PATIENCE:.0f} s whether it is")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(PATIENCE / 20)
            now = self._read()
            if now != held:
                return bool(now)  # renewed, or given back
        return False


def _who(held: dict[str, Any]) -> str:
    return f"process {held.get('process', '?')} on {held.get('host', 'another machine')}"


def _machine() -> str:
    """Names what process numbers are unique in: a boot of a machine and, in a container, its own numbering."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _began(process: int) -> str | None:
    """When a process of this machine began, in ticks since it booted; None if it is no more."""
    try:
        state, *fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else fields[18]  # field 22 of the line, see proc_pid_stat(5)
