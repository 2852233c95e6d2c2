"""Reads that give no frame: some are of frames that cannot be decoded, behind which others come."""

from __future__ import annotations

import time

QUICK_SECONDS = 0.002  # on average: nothing was read, nothing waited for


class Misses:
    """Reads without a frame, in a row; OpenCV does not distinguish a bad frame from the end.

    At the end, or where the connection is gone, they take no time: a number of these mean that nothing more comes.
    Frames that cannot be decoded come at the stream's pace (``paced``); they are waited out for some seconds.
    """

    def __init__(self, quick: int, seconds: float) -> None:
        self._quick, self._seconds = quick, seconds
        self.count = 0
        self.paced = False
        self._since = 0.0

    def another(self, began: float) -> bool:
        """Count one more, whose read began at that time of ``time.monotonic``; whether to read on."""
        if not self.count:
            self._since = began
        self.count += 1
        took = time.monotonic() - self._since
        self.paced = self.count > 1 and took > self.count * QUICK_SECONDS
        return took <= self._seconds and (self.count < self._quick or took > self.count * QUICK_SECONDS)

    def over(self) -> int:
        """How many there were, now that a frame has come."""
        count, self.count = self.count, 0
        return count
