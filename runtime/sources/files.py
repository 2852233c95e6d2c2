"""Images, videos and the demo as a file: every frame is delivered, none is dropped."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import DiinnError, SourceError
from diinn.runtime.geometry.grid import Size
from diinn.runtime.images import files as image_files
from diinn.runtime.sources import demo
from diinn.runtime.sources.base import ENDED, FAILED, LIVE, Frame, Source, stated_rate
from diinn.runtime.sources.misses import Misses
from diinn.runtime.sources.pixel_formats import FLIPS
from diinn.runtime.util import opencv
from diinn.runtime.util.containers import extent
from diinn.runtime.util.opencv import cv2

log = logging.getLogger(__name__)
CLOSING_SECONDS = 1.0  # a file on a disk that hangs is abandoned then
MOST_MISSES, MISSING_SECONDS = 2000, 5.0  # reads in a row without a frame, after which the end is reached
MOTION_JPEG = (b"mjpg", b"mjpe", b"jpeg")
COUNTING_SECONDS = 2.0  # for the packets of a file that may lack frames at its end


class BlockingSource(Source):
    """A source that waits until its last frame is taken; a thread reads ahead by one."""

    live = False

    def __init__(self, name: str, flip: str | None) -> None:
        super().__init__(name)
        self._flip = flip

    def start(self, wake: Callable[[], None]) -> None:
        self.slot.wake = self._wake = wake
        self._thread = threading.Thread(target=self._read, name=f"diinn-{self.name}", daemon=True)
        self._thread.start()

    @abstractmethod
    def frames(self) -> Iterator[Frame]:
        """Every frame in turn; DiinnError where some are missing."""

    def _read(self) -> None:
        self.state, ending = LIVE, ENDED
        try:
            for frame in self.frames():
                upright = replace(frame, image=FLIPS[self._flip](frame.image)) if self._flip else frame
                if not self.slot.put(upright):
                    break
        except Exception as error:  # handed to the stream
            self.failure = error if isinstance(error, DiinnError) else DiinnError(f"{self.name}: {error}")
            ending = FAILED
        finally:
            self.release()
        if self.state != FAILED:
            self.state = ending
        self._wake()

    def release(self) -> None:
        """Close the file; called by the thread that reads."""

    def close(self) -> None:
        self.slot.close()
        thread = getattr(self, "_thread", None)
        if thread is None:
            self.release()
        elif thread is not threading.current_thread():
            thread.join(CLOSING_SECONDS)


class ImageFiles(BlockingSource):
    """Still images, by name. One that cannot be read is named and left out; the run goes on."""

    rate = None

    def __init__(self, name: str, files: Sequence[tuple[Path, Path]], flip: str | None = None) -> None:
        super().__init__(name, flip)
        self.files = files

    def frames(self) -> Iterator[Frame]:
        for path, relative in self.files:
            try:
                yield self._frame(image_files.read_bgr(path), relative)
            except SourceError as error:
                if len(self.files) == 1:
                    raise
                self.failures.append(str(error))
                log.error("%s", error)


class VideoFile(BlockingSource):
    """A video file; every frame that can be decoded is delivered. Others are left out, counted and logged."""

    def __init__(self, name: str, path: Path, loop: bool, flip: str | None = None) -> None:
        super().__init__(name, flip)
        if not path.stat().st_size:
            raise SourceError(f"{str(path)!r} is empty: replace it")
        self._path, self._loop = path, loop
        self._capture = self._opened()
        self.rate = stated_rate(self._capture)
        self._stated = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))  # estimated from the duration: only a hint

    def _opened(self) -> cv2.VideoCapture:
        try:
            capture = opencv.open_video(self._path)
        except OSError as error:
            raise SourceError(f"cannot read {str(self._path)!r}: {error.strerror}") from None
        if not capture.isOpened():
            raise SourceError(
                f"{str(self._path)!r} is no image or video OpenCV can open, or is cut short: copy or convert it"
            )
        return capture

    def frames(self) -> Iterator[Frame]:
        yield from self._once()
        if not self.captured:
            raise SourceError(f"{str(self._path)!r} holds no frame that can be decoded: replace it")
        if cut_short := self._cut_short():
            if not self._loop:
                raise DiinnError(cut_short)
            log.warning("%s", cut_short)
        else:
            self._log_undecodable()
        while self._loop:
            before = self.captured
            self._capture = self._opened()  # not all files can be sought in
            yield from self._once()
            if self.captured == before:
                raise DiinnError(f"{str(self._path)!r} holds no frame that can be decoded any more: replace it")

    def _once(self) -> Iterator[Frame]:
        """From where the file is open to its end."""
        misses = Misses(MOST_MISSES, MISSING_SECONDS)
        while True:
            began = time.monotonic()
            image = self._decoded()
            if image is not None:
                self.undecodable += misses.over()
                yield self._frame(image.astype(np.uint8, copy=False))
            elif not misses.another(began):
                break

    def _decoded(self) -> npt.NDArray[Any] | None:
        try:
            done, image = self._capture.read()
        except cv2.error:  # of this frame
            return None
        return image if done else None

    def _log_undecodable(self) -> None:
        """Log how many frames were left out; those at the end are found by counting packets."""
        codec = int(self._capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True)
        if codec.lower() in MOTION_JPEG and (self._stated > self.captured or self._stated <= 0):  # a frame a packet
            packets = opencv.count_packets(self._path, COUNTING_SECONDS)
            self.undecodable = max(self.undecodable, (packets or 0) - self.captured)
        if self.undecodable:
            log.warning(
                "%r: %d frame%s could not be decoded and %s left out",
                *(str(self._path), self.undecodable, "s" * (self.undecodable > 1)),
                "were" if self.undecodable > 1 else "was",
            )

    def _cut_short(self) -> str:
        """The message for a file whose end is missing and frames with it, empty for any other."""
        try:
            found = extent(self._path)
        except OSError as error:
            return f"{str(self._path)!r} cannot be read any more: {error.strerror}"
        if not found.cut_short or (self._stated == self.captured and not found.fragmented):
            return ""
        of = f" of {self._stated}" if self._stated > self.captured and not found.fragmented else ""
        return (
            f"{str(self._path)!r} is cut short, {found.there} of its {found.stated} bytes are there: "
            f"{self.captured}{of} frames could be decoded and are kept"
        )

    def release(self) -> None:
        self._capture.release()


class DemoFile(BlockingSource):
    """The demo camera as a file that never ends, for benchmarks."""

    def __init__(self, name: str, size: Size, rate: float, flip: str | None = None, noise: float = 0.0) -> None:
        super().__init__(name, flip)
        self.rate, self._size, self._noise = rate, size, noise
        demo.scene()

    def frames(self) -> Iterator[Frame]:
        for number in itertools.count():
            yield self._frame(demo.frame(number / 30, self._size, self._noise))
