"""A request to end a run, and how long its end may take."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Stop:
    """A request to end a run.

    Attributes:
        when: Asked several times a second, in the thread that runs the stream, whether to end.
        deadline: ``time.monotonic`` seconds at which to end.
        interrupted: Whether to end now, and to leave a batch or a sink that takes long.
    """

    def __init__(self, when: Callable[[], bool] = lambda: False) -> None:
        self.when = when
        self.deadline = math.inf
        self.interrupted = False

    @property
    def requested(self) -> bool:
        """Whether it was interrupted or its deadline is over; any thread may ask."""
        return self.interrupted or time.monotonic() >= self.deadline

    def poll(self) -> bool:
        """Whether to end, ``when`` included."""
        return self.when() or self.requested


class ShutdownDeadline:
    """When a shutdown has taken too long: counted from its beginning, or from when it was interrupted."""

    def __init__(self, stop: Stop, seconds: float) -> None:
        self.began = time.monotonic()
        self._stop, self._seconds, self._since = stop, seconds, math.inf

    def after(self, interrupted_seconds: float) -> float:
        """``time.monotonic`` seconds at which it is over; once interrupted, so many seconds after that."""
        if self._since == math.inf and self._stop.interrupted:
            self._since = time.monotonic()
        return min(self._since + interrupted_seconds, self.began + self._seconds)


def join(thread: threading.Thread, until: Callable[[], float]) -> bool:
    """Wait for a thread's end, until ``until``, ``time.monotonic`` seconds, is over; whether it has ended."""
    while thread.is_alive() and time.monotonic() < until():
        thread.join(0.02)  # signals are handled in between
    return not thread.is_alive()
