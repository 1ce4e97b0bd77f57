"""An orderly end where somebody asks for one: Ctrl-C, SIGTERM (a scheduler, a container that is stopped) and SIGHUP
(a terminal that is closed) mean the same. The command line turns them into KeyboardInterrupt; work that has to stop
between two steps asks for them instead."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Whether a signal has come. No `threading.Event`: a handler that interrupts another would wait for its lock."""

    def __init__(self) -> None:
        self._come = False

    def is_set(self) -> bool:
        return self._come

    def set(self) -> None:
        self._come = True


@contextmanager
def interrupts_raise() -> Iterator[None]:
    """Each of the signals raises KeyboardInterrupt inside."""
    with _handled_by(signal.default_int_handler):
        yield


@contextmanager
def interruptible() -> Iterator[Interrupts]:
    """Gives what the signals set, once or many times, so that work can stop between two steps and never within a write.
    Outside the main thread, where no signals arrive, nobody sets it."""
    interrupted = Interrupts()
    with _handled_by(lambda *_: interrupted.set()):
        yield interrupted


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Puts back, when it ends, who handles the signals. It tells the system anew: a library in C changes that behind
    Python's back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        _install(before)


@contextmanager
def _handled_by(handler: Callable[[int, Any], Any]) -> Iterator[None]:
    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            _let_go_of_the_terminal()
        handler(number, frame)

    with handlers_kept():
        # What is ignored stays so: under nohup SIGHUP, in a shell's background SIGINT
        _install({number: handle for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN})
        yield


def _install(handlers: dict[signal.Signals, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None:  # of a library in C
            signal.signal(number, handler)


def _let_go_of_the_terminal() -> None:
    """What is printed from now on goes nowhere: writing to a terminal that is gone is an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
