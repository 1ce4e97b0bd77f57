"""Ctrl-C, SIGTERM and SIGHUP mean the same: an orderly end."""

from __future__ import annotations

import ctypes
import os
import pty
import signal
import threading
import time
from collections.abc import Callable

import pytest

from nfsearch.support.interrupt import SIGNALS, handlers_kept, interruptible, interrupts_raise


@pytest.mark.parametrize("number", SIGNALS)
def test_each_signal_is_an_interrupt(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with interrupts_raise():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        with interruptible() as interrupted:
            assert not interrupted.is_set()
            signal.raise_signal(number)
            signal.raise_signal(number)
            assert interrupted.is_set()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_what_is_ignored_stays_ignored() -> None:
    """As nohup does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts_raise(), interruptible() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert not interrupted.is_set()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_library_that_takes_a_signal_gives_it_back() -> None:
    libc = ctypes.CDLL(None)
    with interruptible() as interrupted:
        with handlers_kept():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            libc.signal(signal.SIGTERM, 1)  # to ignore it; Python does not see this
        signal.raise_signal(signal.SIGTERM)
        assert interrupted.is_set()


def test_another_thread_is_left_alone() -> None:
    seen: list[bool] = []

    def work() -> None:
        with interrupts_raise(), interruptible() as interrupted:
            seen.append(interrupted.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_after_the_terminal_is_closed_printing_is_no_error() -> None:
    child, terminal = pty.fork()
    if child == 0:  # in the terminal that is closed below
        status = 1
        try:
            with interruptible() as interrupted:
                os.write(1, b"ready")
                deadline = time.monotonic() + 20
                while not interrupted.is_set() and time.monotonic() < deadline:
                    time.sleep(0.01)
                os.write(1, b"the end")
                os.write(2, b"the end")
                status = 0 if interrupted.is_set() else 2
        finally:
            os._exit(status)
    assert b"ready" in os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_command_line_ends_with_130(
    command: Callable[..., tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the command is, and whichever signal it is."""
    monkeypatch.setattr("nfsearch.cli.tables.build_table", lambda *_: signal.raise_signal(signal.SIGTERM))
    command("lut", "build", "config.yaml", "-o", "table.parquet", status=130)
