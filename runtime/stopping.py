"""Ctrl-C, SIGTERM and a deadline as one question: is it time to end?"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
        """Whether somebody asked for it, who is not to wait for long."""
        return self.signal is not None

    def __call__(self, number: int, _: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)  # a second one ends at once


@contextmanager
def stopping() -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a ``Stop`` for the duration."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
