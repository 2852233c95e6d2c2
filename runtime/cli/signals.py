"""Ctrl-C, SIGTERM and a deadline as one request to stop, and an end by signal where native code does not return."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NATIVE_SECONDS = 1.0  # that the main thread may take to answer a signal where nothing is being written


class Stop:
    """Set by Ctrl-C, SIGTERM or a deadline: the frame in work is finished, then what is being written."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.deadline = math.inf  # of time.monotonic

    @property
    def requested(self) -> bool:
        """Whether it is time to end."""
        return self.by_signal() or time.monotonic() >= self.deadline

    def by_signal(self) -> bool:
        """Whether a signal came: the user is not to wait for long then."""
        return self.signal is not None

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)  # a second one ends at once


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a ``Stop`` for the duration."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_by_signals(seconds: float = NATIVE_SECONDS) -> Iterator[None]:
    """Within, a signal ends the process, with its exit code, if the main thread has not left after so many seconds.

    It may be in native code (a graph that never ends, a driver that hangs), where no handler of Python's runs. For
    where nothing is being written.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone gets signals
        yield
        return
    heard, woken = socket.socketpair()
    woken.setblocking(False)
    left = threading.Event()
    thread = threading.Thread(target=_watch, args=(heard, left, seconds), name="diinn-signals", daemon=True)
    before = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)  # written to by the handler in C
    with contextlib.suppress(RuntimeError):  # no thread can be started, which is reported elsewhere
        thread.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        woken.close()  # which ends the thread
        if thread.ident is not None:
            thread.join()
        heard.close()


def _watch(heard: socket.socket, left: threading.Event, seconds: float) -> None:
    while number := heard.recv(1):
        if number[0] in SIGNALS and not left.wait(seconds):
            os._exit(128 + number[0])
