"""Images, videos and the demo as a file: every frame is delivered, none is dropped."""

from __future__ import annotations

import itertools
import logging
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from diinn.runtime import demo, images
from diinn.runtime.errors import DiinnError, SourceError
from diinn.runtime.grid import Size
from diinn.runtime.sources.base import ENDED, FAILED, LIVE, Frame, Source, stated_rate
from diinn.runtime.sources.pixels import FLIPS

log = logging.getLogger(__name__)
CLOSING_SECONDS = 1.0  # a file on a disk that hangs is left to itself


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
        """Every frame in turn; DiinnError when there should be more."""

    def _read(self) -> None:
        self.state, ending = LIVE, ENDED
        try:
            for frame in self.frames():
                upright = replace(frame, image=FLIPS[self._flip](frame.image)) if self._flip else frame
                if not self.slot.put(upright):
                    break
        except Exception as error:  # handed to whoever runs the stream
            self.failure = error if isinstance(error, DiinnError) else DiinnError(f"{self.name}: {error}")
            ending = FAILED
        finally:
            self.release()
        if self.state != FAILED:
            self.state = ending
        self._wake()

    def release(self) -> None:
        """Let go of the file; called by the thread that reads."""

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
                yield self._frame(images.read_bgr(path), relative)
            except SourceError as error:
                if len(self.files) == 1:
                    raise
                self.failures.append(str(error))
                log.error("%s", error)


class VideoFile(BlockingSource):
    """A video file; every frame is delivered."""

    def __init__(self, name: str, path: Path, loop: bool, flip: str | None = None) -> None:
        super().__init__(name, flip)
        if not path.stat().st_size:
            raise SourceError(f"{str(path)!r} is empty: replace it")
        self._path, self._loop = path, loop
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise SourceError(
                f"{str(path)!r} is no image or video OpenCV can open, or is cut short: copy or convert it"
            )
        self.rate = stated_rate(self._capture)
        self._promised = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))

    def frames(self) -> Iterator[Frame]:
        while True:
            done, image = self._capture.read()
            if not done and self._loop and self.captured:
                self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
                done, image = self._capture.read()
            if not done:
                break
            yield self._frame(image.astype(np.uint8, copy=False))
        if not self.captured:
            raise SourceError(f"{str(self._path)!r} holds no frame that can be decoded: replace it")
        missing = self._promised - self.captured
        if not self._loop and missing > max(2, 0.02 * self._promised):  # containers count a frame too many
            raise SourceError(
                f"{str(self._path)!r} ended after {self.captured} of {self._promised} frames: it is cut short"
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
