"""GStreamer: frames into a pipeline of the user's, which encodes, streams or shows them."""

from __future__ import annotations

from collections.abc import Callable

from diinn.runtime.errors import InputError
from diinn.runtime.geometry.grid import Size
from diinn.runtime.sinks.files import even, fitted, padded
from diinn.runtime.stream.result import Result
from diinn.runtime.stream.sink import Sink
from diinn.runtime.util import gstreamer
from diinn.runtime.util.once import Once

STALLED_SECONDS = 30.0  # without room for a frame, to start or to end


class GStreamer(Sink):
    """One stream in a GStreamer pipeline, which begins with the first result.

    Frames of a live source bear the time since the first one, those of a file follow each other at its rate. A view
    that changes its size is fitted; an odd size is padded by repeating the last row or column.

    where: the pipeline without what may be secret; description: what follows the frames, as gst-launch-1.0 takes it
    rate: gives the frames per second, called with the first frame
    """

    closing_seconds = 10.0  # a video without its end may not be playable

    def __init__(self, where: str, description: str, rate: Callable[[], float], live: bool) -> None:
        self.where, self._description, self._stated, self._live = where, description, rate, live
        self._pipeline: gstreamer.AppSrcPipeline | None = None
        self._size: Size = (0, 0)
        self._start, self._rate, self._count = 0.0, 1.0, 0
        self._logged = Once()
        if why := gstreamer.parse_error(gstreamer.with_appsrc(description, (2, 2), 1)):
            raise InputError(f"pipeline {where}: {why}: {gstreamer.REMEDY}")

    def write(self, result: Result) -> None:
        image, arrived = result.image, result.frame.arrived
        if self._pipeline is None:
            self._size, self._start, self._rate = (image.shape[1], image.shape[0]), arrived, self._stated()
            self._pipeline = gstreamer.AppSrcPipeline(
                self.where, self._description, even(self._size), self._rate, STALLED_SECONDS
            )
        if (image.shape[1], image.shape[0]) != self._size:
            image = fitted(result, self._size, self.where, self._logged)
        at = arrived - self._start if self._live else self._count / self._rate
        self._pipeline.push(padded(image), at, STALLED_SECONDS)
        self._count += 1

    def close(self, *, failed: bool = False) -> None:
        if self._pipeline is not None:
            pipeline, self._pipeline = self._pipeline, None
            pipeline.close(STALLED_SECONDS)
