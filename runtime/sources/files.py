"""Images and videos: every frame is delivered, none is dropped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from diinn.runtime import images
from diinn.runtime.errors import SourceError
from diinn.runtime.sources.base import Frame, Source, stated_rate

log = logging.getLogger(__name__)


class ImageFiles(Source):
    """Still images, by name. One that cannot be read is named and left out; the run goes on."""

    live = False
    rate = None

    def __init__(self, name: str, files: Sequence[tuple[Path, Path]]) -> None:
        self.name = name
        self.failures: list[str] = []
        self.files = files
        self._next = iter(files)
        self._ended = False

    def read(self, timeout: float) -> Frame | None:
        for path, relative in self._next:
            try:
                return self._frame(images.read_bgr(path), relative)
            except SourceError as error:
                if len(self.files) == 1:
                    raise
                self.failures.append(str(error))
                log.error("%s", error)
        self._ended = True
        return None

    @property
    def ended(self) -> bool:
        return self._ended


class VideoFile(Source):
    """A video file; every frame is delivered."""

    live = False

    def __init__(self, name: str, path: Path, loop: bool) -> None:
        if not path.stat().st_size:
            raise SourceError(f"{str(path)!r} is empty: replace it")
        self.name, self._path, self._loop = name, path, loop
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise SourceError(
                f"{str(path)!r} is no image or video OpenCV can open, or is cut short: copy or convert it"
            )
        self.rate = stated_rate(self._capture)
        self._promised = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self._ended = False

    def read(self, timeout: float) -> Frame | None:
        if self._ended:
            return None
        done, image = self._capture.read()
        if not done and self._loop and self._captured:
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, 0)
            done, image = self._capture.read()
        if done:
            return self._frame(image.astype(np.uint8, copy=False))
        if not self._captured:
            raise SourceError(f"{str(self._path)!r} holds no frame that can be decoded: replace it")
        self._ended = True
        missing = self._promised - self._captured
        if not self._loop and missing > max(2, 0.02 * self._promised):  # containers count a frame too many
            raise SourceError(
                f"{str(self._path)!r} ended after {self._captured} of {self._promised} frames: it is cut short"
            )
        return None

    @property
    def ended(self) -> bool:
        return self._ended

    def close(self) -> None:
        self._capture.release()
