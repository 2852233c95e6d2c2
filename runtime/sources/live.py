"""Sources that go on by themselves: cameras, network streams and the demo. The newest frame wins."""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Iterator

import cv2
import numpy as np
from diinn.runtime import demo
from diinn.runtime.errors import DiinnError, SourceError
from diinn.runtime.grid import Size
from diinn.runtime.images import UInt8
from diinn.runtime.sources.base import Frame, Source, stated_rate

DEMO_SIZE = (160, 120)
DEMO_RATE = 30.0
DEMO_PIXELS = demo.WIDTH * demo.HEIGHT
NETWORK_TIMEOUT_MS = 10_000


class LiveSource(Source):
    """A source that goes on by itself: a thread captures, a slot holds the newest frame alone."""

    live = True

    def __init__(self, name: str, rate: float | None) -> None:
        self.name, self.rate = name, rate
        self._slot: Frame | None = None
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._failure: Exception | None = None
        self._finished = False
        self._thread = threading.Thread(target=self._capture, name=f"diinn-{name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @abstractmethod
    def frames(self) -> Iterator[UInt8]:
        """Images as the device delivers them; ends when the device does."""

    def _capture(self) -> None:
        try:
            for image in self.frames():
                with self._changed:
                    self._slot = self._frame(image)
                    self._changed.notify_all()
                if self._stop.is_set():
                    break
        except Exception as error:  # handed to the thread that reads
            self._failure = error
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def read(self, timeout: float) -> Frame | None:
        with self._changed:
            self._changed.wait_for(lambda: self._slot is not None or self._finished, timeout)
            frame, self._slot = self._slot, None
            failure = self._failure if frame is None else None
        if failure is not None:
            raise failure
        return frame

    @property
    def ended(self) -> bool:
        return self._finished and self._slot is None and self._failure is None

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)


class DemoCamera(LiveSource):
    """The synthetic camera of ``demo.py``; unpaced, it is a file that never ends."""

    def __init__(self, name: str, size: Size, *, paced: bool) -> None:
        if size[0] * size[1] > DEMO_PIXELS:
            raise SourceError(f"the demo camera has no {size[0]}x{size[1]} frames: ask for at most 1920x1440")
        super().__init__(name, DEMO_RATE)
        self.live = paced
        self._size = size
        demo.scene()

    def frames(self) -> Iterator[UInt8]:
        start = time.monotonic()
        while True:
            yield demo.frame(self._captured / DEMO_RATE, self._size)
            self._stop.wait(max(0.0, start + self._captured / DEMO_RATE - time.monotonic()))

    def start(self) -> None:
        if self.live:
            super().start()

    def read(self, timeout: float) -> Frame | None:
        if self.live:
            return super().read(timeout)
        return self._frame(demo.frame(self._captured / DEMO_RATE, self._size))


class Camera(LiveSource):
    """A camera or network stream through OpenCV."""

    def __init__(self, name: str, address: int | str, size: Size | None, api: int) -> None:
        limits = [
            cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
            NETWORK_TIMEOUT_MS,
            cv2.CAP_PROP_READ_TIMEOUT_MSEC,
            NETWORK_TIMEOUT_MS,
        ]
        self._device = cv2.VideoCapture(address, api, limits if api == cv2.CAP_FFMPEG else [])
        if size is not None:
            self._device.set(cv2.CAP_PROP_FRAME_WIDTH, size[0])
            self._device.set(cv2.CAP_PROP_FRAME_HEIGHT, size[1])
        if not self._device.isOpened():
            raise SourceError(
                f"cannot open camera {name}: check that it is connected and not in use, or try --camera demo"
            )
        super().__init__(name, stated_rate(self._device))

    def frames(self) -> Iterator[UInt8]:
        while True:
            done, image = self._device.read()
            if not done:
                raise DiinnError(f"camera {self.name} stopped delivering frames")
            yield image.astype(np.uint8, copy=False)

    def close(self) -> None:
        super().close()
        if not self._thread.is_alive():
            self._device.release()


def csi_pipeline(sensor: str, size: Size | None) -> str:
    """NVIDIA's Argus camera source, for OpenCV builds that have GStreamer (JetPack's; pip's have not)."""
    if not sensor.isdigit():
        raise SourceError(f"csi://{sensor} does not name a sensor by number: use csi://0")
    gstreamer = [line for line in cv2.getBuildInformation().splitlines() if "GStreamer:" in line]
    if not any("YES" in line for line in gstreamer):
        raise SourceError("csi:// needs an OpenCV with GStreamer, this one has none: use the system's OpenCV (JetPack)")
    width, height = size or (1280, 720)
    return (
        f"nvarguscamerasrc sensor-id={sensor} ! video/x-raw(memory:NVMM),width={width},height={height} ! "
        "nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! "
        "appsink drop=true max-buffers=1"
    )
