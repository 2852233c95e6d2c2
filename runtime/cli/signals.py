"""Ctrl-C and SIGTERM as a request to stop, and an end by signal where native code does not return."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from diinn.runtime.stream.stop import Stop

SIGNALS = (signal.SIGINT, signal.SIGTERM)
NATIVE_SECONDS = 1.0  # that the main thread may take to answer a signal where nothing is being written


class SignalStop(Stop):
    """Interrupted by Ctrl-C or SIGTERM: the frame in work is finished, then what is being written.

    signal: its number
    """

    def __init__(self) -> None:
        super().__init__()
        self.signal: int | None = None

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.signal, self.interrupted = number, True
        signal.signal(number, signal.SIG_DFL)  # a second one ends at once


@contextmanager
def stopping() -> Iterator[SignalStop]:
    """Turn SIGINT and SIGTERM into a stop for the duration."""
    stop = SignalStop()
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
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    left = threading.Event()
    thread = threading.Thread(target=_watch, args=(receiver, left, seconds), name="diinn-signals", daemon=True)
    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)  # written to by the handler in C
    with contextlib.suppress(RuntimeError):  # no thread can be started, which is reported elsewhere
        thread.start()
    try:
        yield
    finally:
        left.set()
        signal.set_wakeup_fd(before)
        sender.close()  # which ends the thread
        if thread.ident is not None:
            thread.join()
        receiver.close()


def _watch(receiver: socket.socket, left: threading.Event, seconds: float) -> None:
    while number := receiver.recv(1):
        if number[0] in SIGNALS and not left.wait(seconds):
            os._exit(128 + number[0])
