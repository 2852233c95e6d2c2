"""The loop behind ``diinn-run``: sources, one resolver, sinks, statistics."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType

from diinn.runtime.errors import DiinnError
from diinn.runtime.grid import Size, check_rect
from diinn.runtime.resolver import SuperResolver
from diinn.runtime.sinks import Sink
from diinn.runtime.sources import Frame, Source
from diinn.runtime.stats import Stats
from diinn.runtime.view import Rect, View

IDLE_SECONDS = 0.2  # how long to wait for a frame before looking whether to stop


@dataclass(frozen=True)
class Wanted:
    """What is made of each frame: a size or a scale, of the whole frame or of a rectangle of it."""

    dsize: Size | None
    scale: float | None
    rect: Rect | None

    def view(self, src_size: Size) -> View:
        """The view of a frame of ``src_size`` (width, height)."""
        if self.rect:
            check_rect(src_size, self.rect)
        width, height = self.rect[2:] if self.rect else src_size
        scale = self.scale or 1.0
        dsize = self.dsize or (_scaled(width, scale), _scaled(height, scale))
        return View.roi(self.rect, dsize) if self.rect else View.resize(dsize)


def _scaled(length: float, scale: float) -> int:
    """``length`` times ``scale`` in whole pixels; rounding alone never makes a view smaller than its source."""
    return max(1, round(length * scale), math.ceil(length) if scale >= 1 else 1)


class Stop:
    """Set by Ctrl-C, SIGTERM or a deadline: the frame in work is finished, then what is being written."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.deadline = math.inf  # of time.monotonic

    @property
    def requested(self) -> bool:
        """Whether it is time to end."""
        return self.signal is not None or time.monotonic() >= self.deadline

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
        most: int | None,
        announce: Callable[[Frame, View], None],
    ) -> None:
        self.resolver, self.routes, self.wanted, self.most = resolver, routes, wanted, most
        self.stats = Stats()
        self._announce = announce
        self._views: dict[tuple[str, Size], View] = {}

    def run(self, stop: Stop, tick: Callable[[Stats], None]) -> None:
        """Until the sources end, ``most`` frames are done or ``stop`` is set; sinks are closed in any case."""
        with ExitStack() as closing:
            for source, sink in self.routes:
                closing.push(_closer(sink))
                closing.callback(source.close)
                source.start()
            while not self._done(stop):
                for source, sink in self.routes:
                    if self._done(stop):
                        break
                    frame = source.read(IDLE_SECONDS / len(self.routes))
                    if frame is not None:
                        self._process(frame, sink)
                        tick(self.stats)

    @property
    def captured(self) -> int:
        """Frames all sources captured, dropped ones included."""
        return sum(source.captured for source, _ in self.routes)

    def _done(self, stop: Stop) -> bool:
        enough = self.most is not None and self.stats.processed >= self.most
        closed = any(sink.closed for _, sink in self.routes)
        ended = all(source.ended for source, _ in self.routes)
        return stop.requested or enough or closed or ended

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


def _closer(sink: Sink) -> Callable[[type[BaseException] | None, BaseException | None, TracebackType | None], None]:
    """Closes ``sink`` at the end of a ``with``, telling it whether an error ended it; the error comes first."""

    def close(kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            sink.close(failed=kind is not None)
        except DiinnError:
            if kind is None:
                raise

    return close
