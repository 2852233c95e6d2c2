"""Where frames come from: one URI names a camera, a video, images or the demo.

Live sources deliver the newest frame and count what was dropped; files never drop, they wait.
"""

from __future__ import annotations

import glob
import logging
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import cv2
import numpy as np
import numpy.typing as npt
from diinn.runtime import demo, images
from diinn.runtime.errors import DiinnError, SourceError, unknown
from diinn.runtime.view import Size

log = logging.getLogger(__name__)
SCHEMES = ("v4l2", "csi", "rtsp", "http", "https", "file", "demo")
DEMO_SIZE = (160, 120)
DEMO_RATE = 30.0
DEMO_PIXELS = demo.WIDTH * demo.HEIGHT
NETWORK_TIMEOUT_MS = 10_000


@dataclass(frozen=True)
class Frame:
    """One captured frame.

    image: uint8 [H, W, 3] BGR; source: name of its source; sequence: its number there, from 0
    captured: wall clock, seconds since the epoch; arrived: ``time.monotonic`` seconds
    path: of an image file, relative to what was asked for; None for cameras and videos
    """

    image: npt.NDArray[np.uint8]
    source: str
    sequence: int
    captured: float
    arrived: float
    path: Path | None = None


class Source(ABC):
    """An opened source: iterate over its frames, then close it.

    live: newest frame wins, others are dropped; rate: frames per second, None for still images
    """

    name: str
    live: bool
    rate: float | None

    @abstractmethod
    def read(self, timeout: float) -> Frame | None:
        """The next frame, or the newest of a live source; None if there is none within ``timeout``
        seconds or ``ended`` has become true."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether no further frame will come."""

    @property
    def captured(self) -> int:
        """Frames captured so far, dropped ones included."""
        return self._captured

    _captured = 0
    files: Sequence[tuple[Path, Path]] = ()  # of still images: (file, its path below what was asked for)

    def start(self) -> None:  # noqa: B027  only live sources go on by themselves
        """Begin to capture; called once, when the source's name is settled."""

    def close(self) -> None:  # noqa: B027  still images hold nothing
        """Let go of the device or file."""

    def _frame(self, image: npt.NDArray[np.uint8], path: Path | None = None) -> Frame:
        frame = Frame(image, self.name, self._captured, time.time(), time.monotonic(), path)
        self._captured += 1
        return frame


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
        self.rate = _rate(self._capture)
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
    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
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

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
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
        super().__init__(name, _rate(self._device))

    def frames(self) -> Iterator[npt.NDArray[np.uint8]]:
        while True:
            done, image = self._device.read()
            if not done:
                raise DiinnError(f"camera {self.name} stopped delivering frames")
            yield image.astype(np.uint8, copy=False)

    def close(self) -> None:
        super().close()
        if not self._thread.is_alive():
            self._device.release()


def open_camera(uri: str, size: Size | None, *, loop: bool = False, paced: bool = True) -> Source:
    """The source that ``uri`` names: ``0``, ``/dev/video0``, ``v4l2:///dev/video0``, ``csi://0``,
    ``rtsp://…``, ``http://…``, ``file://clip.mp4`` or ``demo``.

    size: (width, height) asked of the camera; paced: whether the demo keeps its frame rate
    """
    if uri == "demo" or uri.startswith("demo:"):
        camera: LiveSource = DemoCamera("demo", size or DEMO_SIZE, paced=paced)
    elif uri.isascii() and uri.isdigit() and len(uri) < 5:
        camera = Camera(uri, int(uri), size, cv2.CAP_ANY)
    else:
        scheme, separator, rest = uri.partition("://")
        if not separator:
            if uri.startswith("/dev/"):
                return open_camera(f"v4l2://{uri}", size)
            hint = f"; for a file use --input {uri}" if os.path.exists(uri) else ""  # noqa: PTH110  never raises
            raise SourceError(f"camera {public(uri)!r} is neither a number, a device nor a URI{hint}")
        if scheme == "file":
            return open_input(uri, loop=loop)
        if scheme == "csi":
            camera = Camera(uri, _csi_pipeline(rest, size), None, cv2.CAP_GSTREAMER)
        elif scheme == "v4l2":
            if not Path(rest).exists():
                raise SourceError(f"no such camera {rest!r}: list them with ls /dev/video*, or try --camera demo")
            camera = Camera(uri, rest, size, cv2.CAP_V4L2)
        elif scheme in ("rtsp", "http", "https"):
            if size is not None:
                log.warning("%s: the stream decides its frame size, --input-size is ignored", public(uri))
            camera = Camera(public(uri), uri, None, cv2.CAP_FFMPEG)
        else:
            raise SourceError(unknown("camera scheme", scheme, SCHEMES))
    return camera


def open_input(pattern: str, *, loop: bool = False) -> Source:
    """A file, a folder (searched recursively) or a glob of images, or a video file."""
    pattern = unquote(pattern.removeprefix("file://")) if pattern.startswith("file://") else pattern
    if re.match(r"[a-z0-9]+://", pattern):
        raise SourceError(f"--input takes files, {public(pattern)!r} is a stream: give it as --camera")
    if not pattern:
        raise SourceError("--input is empty: give a file, a folder or a quoted glob")
    path = Path(pattern)
    if path.is_dir():
        files = images.find(path)
        if not files:
            raise SourceError(f"no image in folder {pattern!r}: looked for {', '.join(sorted(images.SUFFIXES))}")
        return ImageFiles(path.resolve().name, [(p, p.relative_to(path)) for p in files])
    if path.is_file():
        if path.suffix.lower() in images.SUFFIXES:
            return ImageFiles(path.name, [(path, Path(path.name))])
        return VideoFile(path.name, path, loop)
    matches = sorted(Path(p) for p in glob.glob(pattern, recursive=True))  # noqa: PTH207  takes absolute patterns
    files = [p for p in matches if p.is_file() and p.suffix.lower() in images.SUFFIXES]
    if not files:
        raise SourceError(f"no file, folder or image matches {pattern!r}: check the path")
    names = [p.name for p in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SourceError(f"{pattern!r} matches several files called {twice!r}: give their folder instead")
    return ImageFiles(pattern, [(p, Path(p.name)) for p in files])


def public(uri: str) -> str:
    """``uri`` without what may be secret, for logs, statistics and messages: everything up to the last @
    behind the scheme (user name and password) and the query."""
    return re.sub(r"^([a-z0-9]+://)?(.*@)?([^?#]*).*$", r"\1\3", uri, flags=re.DOTALL | re.IGNORECASE)


def _rate(capture: cv2.VideoCapture) -> float:
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate <= 1000 else 30.0


def _csi_pipeline(sensor: str, size: Size | None) -> str:
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
