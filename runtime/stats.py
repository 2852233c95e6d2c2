"""What happened in a run: counts, frame ages, stage times."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

WINDOW = 10_000  # frames that percentiles look back


class Stats:
    """Counts and times of one run; ``summary`` is what ``--stats`` writes.

    Times are milliseconds. Age is from a frame's arrival at the source to its result at the sink.
    """

    def __init__(self) -> None:
        self.processed = 0
        self._start = self._first = self._latest = time.monotonic()
        self._times: dict[str, deque[float]] = {}

    def add(self, **milliseconds: float) -> None:
        """One processed frame and the times of its stages."""
        self._latest = time.monotonic()
        if not self.processed:
            self._first = self._latest
        self.processed += 1
        for stage, value in milliseconds.items():
            self._times.setdefault(stage, deque(maxlen=WINDOW)).append(value)

    @property
    def fps(self) -> float:
        """Frames per second from the first result to the latest."""
        span = self._latest - self._first
        return (self.processed - 1) / span if span > 0 else 0.0

    def latest(self, stage: str) -> float:
        """The stage's last time, 0 before the first frame."""
        times = self._times.get(stage)
        return times[-1] if times else 0.0

    def summary(self, captured: int) -> dict[str, Any]:
        """Everything, as plain JSON values."""
        return {
            "captured": captured,
            "processed": self.processed,
            "dropped": captured - self.processed,
            "seconds": round(time.monotonic() - self._start, 3),
            "fps": round(self.fps, 2),
            "ms": {stage: _percentiles(times) for stage, times in self._times.items()},
        }


def _percentiles(values: Iterable[float]) -> dict[str, float]:
    p50, p95, p99 = np.percentile(np.fromiter(values, float), (50, 95, 99)).tolist()
    return {"p50": round(p50, 2), "p95": round(p95, 2), "p99": round(p99, 2)}
