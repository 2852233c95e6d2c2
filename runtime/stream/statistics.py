"""What happened in a stream: counts, ages and stage times, in all and by camera."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from diinn.runtime.stream.result import QUALITIES, WHOLE
from diinn.runtime.util import memory
from diinn.runtime.util.memory import MIB

if TYPE_CHECKING:
    from diinn.runtime.stream.camera_lane import CameraLane
    from diinn.runtime.stream.sink_thread import SinkThread

WINDOW = 10_000  # frames that percentiles look back
RECENT = 5.0  # seconds that frames a second and ages of a camera look back while it runs


class _Camera:
    def __init__(self) -> None:
        self.processed = 0
        self.qualities: Counter[str] = Counter()
        self.ages: deque[tuple[float, float]] = deque(maxlen=WINDOW)  # (when, milliseconds)
        self.first = 0.0
        self.finished: deque[float] = deque(maxlen=1000)

    def fps(self, now: float, final: bool) -> float:
        """Frames per second: of all results, or before the end of those since ``RECENT`` seconds or the first."""
        if not self.finished:
            return 0.0
        if final:
            span, count = self.finished[-1] - self.first, self.processed - 1
        else:
            since = max(self.first, now - RECENT)
            span, count = now - since, sum(at > since for at in self.finished)
        return round(count / span, 2) if span > 0 else 0.0


class Stats:
    """Counts and times of one run.

    Times are milliseconds; an age is from a frame's arrival to when a sink takes its view; ``encode``, ``decode`` and
    ``total`` are of batches.
    """

    def __init__(self) -> None:
        self.processed = self.batches = self.workers = 0  # workers: bytes of their memory
        self._start = self._first = self._latest = time.monotonic()
        self._times: dict[str, deque[float]] = {}
        self._cameras: dict[str, _Camera] = {}
        self._lock = threading.Lock()

    def batch(self, done: Sequence[tuple[str, str]], **milliseconds: float) -> None:
        """A batch: (camera, quality) of each frame in it, and what its stages took."""
        with self._lock:
            self._latest = time.monotonic()
            if not self.processed:
                self._first = self._latest
            self.processed += len(done)
            self.batches += 1
            for name, quality in done:
                camera = self._cameras.setdefault(name, _Camera())
                camera.first = camera.first or self._latest
                camera.processed += 1
                camera.qualities[quality] += 1
                camera.finished.append(self._latest)
            self._add(**milliseconds)

    def taken(self, camera: str, age: float) -> None:
        """A view reached a sink ``age`` milliseconds after its frame arrived."""
        with self._lock:
            self._cameras.setdefault(camera, _Camera()).ages.append((time.monotonic(), age))
            self._add(age=age)

    def written(self, milliseconds: float) -> None:
        """A sink took so long to write a view."""
        with self._lock:
            self._add(sink=milliseconds)

    def _add(self, **milliseconds: float) -> None:
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

    def snapshot(
        self, lanes: Sequence[CameraLane], sink_threads: Sequence[SinkThread], *, final: bool = False
    ) -> dict[str, Any]:
        """Everything so far, as plain JSON values."""
        now = time.monotonic()
        with self._lock:
            stages = {stage: list(times) for stage, times in self._times.items()}
            processed, batches = self.processed, self.batches
            each = {lane.name: self._of(lane, now, final) for lane in lanes}
        self.look_at_workers(lanes)
        captured, dropped = (sum(camera[key] for camera in each.values()) for key in ("captured", "dropped"))
        return {
            "type": "summary" if final else "second",
            "time": round(time.time(), 3),
            "captured": captured,
            "processed": processed,
            "dropped": dropped,
            "batches": batches,
            "seconds": round(now - self._start, 3),
            "fps": round(self.fps if final else sum(c["fps"] for c in each.values()), 2),
            "ms": {stage: percentiles(times) for stage, times in stages.items()},
            "cameras": each,
            "outputs": [
                {
                    "where": sink_thread.sink.where,
                    "written": sink_thread.written,
                    "dropped": sink_thread.dropped,
                    "failure": str(sink_thread.failure) if sink_thread.failure else "",
                    **sink_thread.sink.statistics(),
                }
                for sink_thread in sink_threads
            ],
            "memory_mib": round(memory.held(os.getpid()) / MIB, 1),
            "workers_mib": round(self.workers / MIB, 1),
            "threads": threading.active_count(),
        }

    def look_at_workers(self, lanes: Sequence[CameraLane]) -> None:
        """Note the memory of the processes that capture, while there are any."""
        found = sum(memory.held(process) for lane in lanes for process in lane.source.processes)
        self.workers = found or self.workers

    def _of(self, lane: CameraLane, now: float, final: bool) -> dict[str, Any]:
        since = 0.0 if final else now - RECENT
        camera, source = self._cameras.setdefault(lane.name, _Camera()), lane.source
        # Files are read ahead, none is dropped.
        captured = source.captured if source.live else camera.processed + lane.unwanted
        return {
            "state": source.state,
            "trouble": lane.trouble or source.trouble,
            "size": list(lane.size) if lane.size else None,
            "captured": captured,
            "processed": camera.processed,
            # At last, what was not processed; before, what is in work or waits may still be.
            "dropped": max(0, captured - camera.processed - lane.unwanted) if final else lane.dropped,
            "unwanted": lane.unwanted,
            "undecodable": source.undecodable,
            "reconnects": source.reconnects,
            "fps": camera.fps(now, final),
            "age_ms": percentiles(age for at, age in camera.ages if at > since),
            "denoise": lane.denoise.statistics,
            "degraded": {quality: camera.qualities[quality] for quality in QUALITIES if quality != WHOLE},
        }


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """p50, p95 and p99 of values, zeros of none."""
    found = np.fromiter(values, float)
    p50, p95, p99 = np.percentile(found, (50, 95, 99)).tolist() if len(found) else (0.0, 0.0, 0.0)
    return {"p50": round(p50, 2), "p95": round(p95, 2), "p99": round(p99, 2)}
