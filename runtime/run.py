"""The loop behind ``diinn-run``: sources, one resolver, sinks, statistics."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

from diinn.runtime.resolver import SuperResolver
from diinn.runtime.sinks import Sink
from diinn.runtime.sources import Frame, Source
from diinn.runtime.stats import Stats
from diinn.runtime.view import Rect, Size, View

log = logging.getLogger(__name__)
IDLE_SECONDS = 0.2  # how long to wait for a frame before looking whether to stop


@dataclass(frozen=True)
class Wanted:
    """What is made of each frame: a size or a scale, of the whole frame or of a rectangle of it."""

    dsize: Size | None
    scale: float | None
    rect: Rect | None

    def view(self, src_size: Size) -> View:
        """The view of a frame of ``src_size`` (width, height)."""
        width, height = self.rect[2:] if self.rect else src_size
        scale = self.scale or 1.0
        dsize = self.dsize or (_scaled(width, scale), _scaled(height, scale))
        return View.roi(self.rect, dsize) if self.rect else View.resize(dsize)


def _scaled(length: float, scale: float) -> int:
    """``length`` times ``scale`` in whole pixels; rounding alone never makes a view smaller than its source."""
    return max(1, round(length * scale), math.ceil(length) if scale >= 1 else 1)


@dataclass(frozen=True)
class Limits:
    """When to end although the sources go on: after so many frames or seconds."""

    frames: int | None = None
    seconds: float | None = None


class Stop:
    """Set by Ctrl-C or SIGTERM: the frame in work is finished, then what is being written."""

    def __init__(self) -> None:
        self.signal: int | None = None

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


class Run:
    """Frames of all sources in turn through the resolver to their sinks.

    One source after the other is asked for its newest frame. Streaming that keeps several cameras
    apart when one hangs replaces this loop, not what it calls.
    """

    def __init__(
        self,
        resolver: SuperResolver,
        routes: Sequence[tuple[Source, Sink]],
        wanted: Wanted,
        limits: Limits,
        announce: Callable[[Frame, View], None],
    ) -> None:
        self.resolver, self.routes, self.wanted, self.limits = resolver, routes, wanted, limits
        self.stats = Stats()
        self._announce = announce
        self._views: dict[tuple[str, Size], View] = {}

    def run(self, stop: Stop, tick: Callable[[Stats], None]) -> None:
        """Until the sources end, a limit is reached or ``stop`` is set; sinks are closed in any case."""
        with ExitStack() as closing:
            for source, sink in self.routes:
                closing.callback(sink.close)
                closing.callback(source.close)
            deadline = time.monotonic() + (self.limits.seconds or float("inf"))
            while not self._done(stop, deadline):
                for source, sink in self.routes:
                    if self._done(stop, deadline):
                        break
                    frame = source.read(IDLE_SECONDS / len(self.routes))
                    if frame is not None:
                        self._process(frame, sink)
                        tick(self.stats)

    @property
    def captured(self) -> int:
        """Frames all sources captured, dropped ones included."""
        return sum(source.captured for source, _ in self.routes)

    def _done(self, stop: Stop, deadline: float) -> bool:
        enough = self.limits.frames is not None and self.stats.processed >= self.limits.frames
        closed = any(getattr(sink, "closed", False) for _, sink in self.routes)
        ended = all(source.ended for source, _ in self.routes)
        return stop.signal is not None or enough or closed or ended or time.monotonic() >= deadline

    def _process(self, frame: Frame, sink: Sink) -> None:
        size = (frame.image.shape[1], frame.image.shape[0])
        view = self._views.get((frame.source, size))
        if view is None:
            view = self._views[frame.source, size] = self.wanted.view(size)
            self._announce(frame, view)
        start = time.perf_counter()
        encoded = self.resolver.encode([frame.image])[0]
        middle = time.perf_counter()
        image = self.resolver.decode(encoded, [view])[0]
        end = time.perf_counter()
        sink.write(frame, image)
        done = time.perf_counter()
        self.stats.add(
            age=(time.monotonic() - frame.arrived) * 1e3,
            encode=(middle - start) * 1e3,
            decode=(end - middle) * 1e3,
            total=(end - start) * 1e3,
            sink=(done - end) * 1e3,
        )
