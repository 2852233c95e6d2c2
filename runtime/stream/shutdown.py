"""How long an ending may take."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable


class Limit:
    """When an ending takes too long: counted from its beginning, or from when somebody hurries it on."""

    def __init__(self, hurried: Callable[[], bool], patience: float) -> None:
        self.began = time.monotonic()
        self._hurried, self._patience, self._since = hurried, patience, math.inf

    def after(self, in_a_hurry: float) -> float:
        """``time.monotonic`` seconds at which it is over, ``in_a_hurry`` seconds after it was hurried on."""
        if self._since == math.inf and self._hurried():
            self._since = time.monotonic()
        return min(self._since + in_a_hurry, self.began + self._patience)


def join(thread: threading.Thread, until: Callable[[], float]) -> bool:
    """Wait for a thread's end, until ``until``, ``time.monotonic`` seconds, is over; whether it has ended."""
    while thread.is_alive() and time.monotonic() < until():
        thread.join(0.02)  # signals are heard between
    return not thread.is_alive()
