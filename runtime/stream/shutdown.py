"""How long a shutdown may take."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class ShutdownDeadline:
    """When a shutdown has taken too long: counted from its beginning, or from when it was interrupted."""

    def __init__(self, interrupted: Callable[[], bool], seconds: float) -> None:
        self.began = time.monotonic()
        self._interrupted, self._seconds, self._since = interrupted, seconds, math.inf

    def after(self, interrupted_seconds: float) -> float:
        """``time.monotonic`` seconds at which it is over; once interrupted, so many seconds after that."""
        if self._since == math.inf and self._interrupted():
            self._since = time.monotonic()
        return min(self._since + interrupted_seconds, self.began + self._seconds)


def join(thread: threading.Thread, until: Callable[[], float]) -> bool:
    """Wait for a thread's end, until ``until``, ``time.monotonic`` seconds, is over; whether it has ended."""
    while thread.is_alive() and time.monotonic() < until():
        thread.join(0.02)  # signals are handled in between
    return not thread.is_alive()
