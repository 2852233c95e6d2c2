"""The end of a stream: cameras, the batch in work, sinks."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Sequence

from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.sources import Source
from diinn.runtime.stream.batcher import Batcher
from diinn.runtime.stream.outcome import Outcome
from diinn.runtime.stream.sink_thread import SinkThread
from diinn.runtime.stream.stop import ShutdownDeadline, Stop, join

BATCH_SECONDS = 0.8  # for the batch in work, once interrupted
LIVE_SECONDS = 30.0  # for a batch, and for all sinks, where nothing but live cameras would be lost
CAMERA_SECONDS = 2.0  # for all cameras to close, which they do beside the rest
TICK_SECONDS = 0.05


class Shutdown:
    """Ends a stream once, in the thread that runs it; other threads that close it wait for that.

    begun: whether a thread has called ``close``; interrupted: whether that did not wait for all of it
    batch: the thread of the batcher; started: whether the stream's threads run
    release: called once everything has ended, or was left
    """

    def __init__(
        self,
        batcher: Batcher,
        batch: threading.Thread,
        sources: Sequence[Source],
        sink_threads: Sequence[SinkThread],
        outcome: Outcome,
        release: Callable[[], None],
    ) -> None:
        self.begun = self.interrupted = self.started = False
        self.batch = batch
        self._batcher, self._sources, self._sink_threads, self._outcome = batcher, sources, sink_threads, outcome
        self._release = release
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._runner: threading.Thread | None = None
        self._closer: threading.Thread | None = None

    def start(self) -> None:
        """From here on the stream's threads run; InputError where they did before, or it has ended."""
        with self._lock:
            if self.started or self._closer is not None:
                raise InputError("a stream runs once: make another")
            self.started = True

    def run_here(self) -> None:
        """From here on the calling thread runs the stream."""
        self._runner = threading.current_thread()

    def close(self, stop: Stop) -> None:
        """End the stream, or wait until the thread that runs it has; a sink's own thread does not wait for itself."""
        here = threading.current_thread()
        self.begun = True
        with self._lock:
            mine = self._closer is None and self._runner in (None, here)
            if mine:
                self._closer = here
            started = self.started
        if mine:
            try:
                self._end(stop, started=started)
                self._release()
            finally:
                self._ended.set()
        elif here not in (self._closer, self.batch, *(sink_thread.thread for sink_thread in self._sink_threads)):
            while not self._ended.wait(TICK_SECONDS) and not stop.interrupted:
                pass

    def _end(self, stop: Stop, *, started: bool) -> None:
        """Cameras at once, then the batch in work, then the sinks, which begin to finish together."""
        self._batcher.stop()
        self._batcher.stats.look_at_workers(self._batcher.lanes)
        closers = [threading.Thread(target=source.close, daemon=True) for source in self._sources]
        for closer in closers:
            closer.start()
        seconds = LIVE_SECONDS if all(source.live for source in self._sources) else math.inf
        limit = ShutdownDeadline(stop, seconds)
        if started and self.batch is not threading.current_thread():
            join(self.batch, lambda: limit.after(BATCH_SECONDS))
        for sink_thread in self._sink_threads:
            sink_thread.end(failed=self._outcome.error is not None or not started)
        limit = ShutdownDeadline(stop, seconds)
        for sink_thread in self._sink_threads:
            if started:
                sink_thread.wait(limit.after)
            else:
                with contextlib.suppress(DiinnError):
                    sink_thread.sink.close(failed=True)
        self.interrupted = stop.interrupted
        for closer in closers:
            closer.join(max(0.0, limit.began + CAMERA_SECONDS - time.monotonic()))
