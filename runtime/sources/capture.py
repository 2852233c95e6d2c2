"""Cameras as a worker process opens and reads them."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diinn.runtime.errors import SourceError
from diinn.runtime.geometry.grid import Size
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.sources import demo
from diinn.runtime.sources.base import Source, stated_rate
from diinn.runtime.sources.misses import Misses
from diinn.runtime.sources.pixel_formats import BAYER, CODECS, FLIPS, folded, to_bgr
from diinn.runtime.util import gstreamer, opencv
from diinn.runtime.util.opencv import cv2

DEMO = "demo"
DEMO_RATE = 30.0
# No buffering: a frame is wanted when it arrives. A value that the user has set is kept.
FFMPEG_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay"
LEAVE = signal.SIGUSR1  # asks a worker process to end by itself
MOST_MISSES = 50  # reads in a row without a frame that took no time: the connection is gone
OLDEST_STAMP = 1.0  # seconds a frame may be old by its driver's clock; beyond, it is another clock


@dataclass(frozen=True)
class CaptureRequest:
    """What to open, and how; goes to the worker process as JSON, never on a command line.

    address: number, path, URL or pipeline, or "demo"; api: OpenCV's constant for what opens it
    size: (width, height) and rate (frames per second) to request; codec, flip: names in ``pixel_formats``
    noise: of the demo camera's sensor, root mean square in grey levels
    opening, stall: seconds after which the parent gives up waiting; a network stream gives up by itself before
    """

    address: int | str = field(repr=False)  # with what may be secret
    api: int = cv2.CAP_ANY
    size: Size | None = None
    rate: float | None = None
    codec: str | None = None
    flip: str | None = None
    noise: float = 0.0
    opening: float = 15.0
    stall: float = 5.0

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def from_json(text: bytes) -> CaptureRequest:
        fields = json.loads(text)
        return CaptureRequest(**fields | {"size": fields["size"] and tuple(fields["size"])})

    @property
    def network(self) -> bool:
        return self.api == cv2.CAP_FFMPEG

    @property
    def bus(self) -> bool:
        """Whether it is a topic on a robot's bus."""
        return isinstance(self.address, str) and self.address.startswith("ros2://")

    @property
    def remedy(self) -> str:
        """What to check where it does not open or stops."""
        if self.bus:
            return "its publisher with 'ros2 topic info -v', and that both have the same ROS_DOMAIN_ID"
        if self.api == cv2.CAP_GSTREAMER:
            return gstreamer.REMEDY.removeprefix("check ")
        return "the address and that it is on" if self.network else Source.remedy


class OpenCapture(ABC):
    """An opened device.

    rate: frames per second that it states; undecodable: frames that were left out since they could not be decoded
    header, info: of a topic of ROS what a message says of the frame that was read last, and of its camera; as plain
        JSON values
    """

    rate: float
    undecodable = 0
    header: dict[str, Any] | None = None
    info: dict[str, Any] | None = None

    @abstractmethod
    def read(self) -> tuple[UInt8, float, float]:
        """The next frame; SourceError when there is none.

        Returns:
            The image, uint8 [H, W, 3] BGR, its capture time (wall clock) and its arrival (monotonic), both in seconds.
        """

    def close(self) -> None:  # noqa: B027  most end with their process
        """Take leave of others who know of it."""


def open_capture(device: CaptureRequest) -> OpenCapture:
    """Open it, however long that takes; SourceError if that fails."""
    return DemoCapture(device) if device.address == DEMO else OpenCvCapture(device)


class DemoCapture(OpenCapture):
    """The synthetic camera of ``demo.py``."""

    def __init__(self, device: CaptureRequest) -> None:
        assert device.size is not None
        self.rate, self._size, self._flip = device.rate or DEMO_RATE, device.size, device.flip
        self._noise = device.noise
        demo.scene()
        self._start, self._count = time.monotonic(), 0

    def read(self) -> tuple[UInt8, float, float]:
        image = demo.frame(self._count / self.rate, self._size, self._noise)
        self._count += 1
        time.sleep(max(0.0, self._start + self._count / self.rate - time.monotonic()))
        upright = FLIPS[self._flip](image) if self._flip else image
        return upright, time.time(), time.monotonic()


class OpenCvCapture(OpenCapture):
    """A camera or network stream through OpenCV."""

    def __init__(self, device: CaptureRequest) -> None:
        self._device = device
        if why := _why_not(device):
            raise SourceError(f"cannot be opened, {why}")
        began = time.monotonic()
        self._capture = opencv.open_camera(device.address, device.api, _limits(device) if device.network else [])
        if not self._capture.isOpened():
            took = time.monotonic() - began
            left = min(2.0, max(0.05, 0.98 * device.opening - took))  # then the parent ends us
            why = ""
            if device.network:
                why = unreachable(str(device.address), left, silent=took > 0.8 * device.opening)
            elif device.api == cv2.CAP_GSTREAMER and (error := gstreamer.start_error(str(device.address), left)):
                why = f", {error}"
            raise SourceError(f"cannot be opened{why}")
        if not device.network:
            self._ask()
        self.rate = stated_rate(self._capture)
        self._skipped_until = 0.0

    def _ask(self) -> None:
        device = self._device
        if device.codec:
            self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*CODECS[device.codec]))
            if device.codec in BAYER:
                self._capture.set(cv2.CAP_PROP_CONVERT_RGB, 0)
        if device.size:
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, device.size[0])
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, device.size[1])
        if device.rate:
            self._capture.set(cv2.CAP_PROP_FPS, device.rate)
        self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def read(self) -> tuple[UInt8, float, float]:
        while True:
            image = self._next()
            arrived = time.monotonic()
            if self._device.rate is None or arrived >= self._skipped_until:  # some deliver more than was requested
                break
        if self._device.rate is not None:
            self._skipped_until = max(self._skipped_until + 1 / self._device.rate, arrived - 0.5 / self._device.rate)
        by_driver = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3 if self._device.api == cv2.CAP_V4L2 else 0.0
        captured = time.time() - age_by_driver(by_driver, arrived)
        if self._device.codec in BAYER:
            size = (self._capture.get(cv2.CAP_PROP_FRAME_WIDTH), self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
            image = folded(image, (int(size[0]), int(size[1])))
        upright = to_bgr(image, self._device.codec)
        return FLIPS[self._device.flip](upright) if self._device.flip else upright, captured, arrived

    def _next(self) -> Any:
        """The next image that can be decoded; SourceError where none comes any more, or none for long."""
        misses = Misses(MOST_MISSES, 0.9 * self._device.stall)  # then the parent would end us
        while True:
            began = time.monotonic()
            try:
                done, image = self._capture.read()
            except cv2.error:  # of this frame
                done, image = False, None
            if done:
                self.undecodable += misses.over()
                return image
            if not misses.another(began):
                what = "delivers nothing that can be decoded" if misses.paced else "stopped delivering frames"
                raise SourceError(what)


def _why_not(device: CaptureRequest) -> str:
    """Why the device cannot be opened, found before OpenCV tries; empty if it may be."""
    if device.api == cv2.CAP_GSTREAMER:
        return gstreamer.parse_error(str(device.address))  # some of them OpenCV would try for ever
    if device.api != cv2.CAP_V4L2:
        return ""
    node = Path(f"/dev/video{device.address}" if isinstance(device.address, int) else device.address)
    if not node.exists():
        return f"there is no {node}"
    if not node.is_char_device():
        return f"{node} is no video device"
    return "" if os.access(node, os.R_OK | os.W_OK) else f"this user may not use {node}: sudo usermod -aG video $USER"


def unreachable(url: str, seconds: float, *, silent: bool = False) -> str:
    """Why a network stream may not have opened, to follow the message that it has not.

    silent: whether that took as long as a server that does not answer
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"rtsp": 554, "rtsps": 322, "https": 443}.get(parts.scheme.lower(), 80)
        socket.create_connection((parts.hostname or "", port), seconds).close()
    except TimeoutError:
        return f", nothing answers at port {port}"
    except (OSError, ValueError, UnicodeError) as error:
        return f", {(getattr(error, 'strerror', None) or 'its address is none').lower()}"
    if silent:
        return ", the server accepts the connection and answers nothing"
    return ", the server answers but gives no such stream: look at path, user and password"


def _limits(device: CaptureRequest) -> list[int]:
    """Limits for OpenCV, as property and value in turn; a version that does not know one of them opens nothing."""
    limits = [
        *(cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _milliseconds(device.opening)),
        *(cv2.CAP_PROP_READ_TIMEOUT_MSEC, _milliseconds(device.stall)),
    ]
    if hasattr(cv2, "CAP_PROP_N_THREADS"):  # from 4.7 on: several threads hold back a frame each
        limits += [cv2.CAP_PROP_N_THREADS, 1]
    return limits


def _milliseconds(seconds: float) -> int:
    """Just before the parent would end the process, so that it can report why."""
    return max(1, min(2**31 - 1, round(900 * seconds)))


def age_by_driver(stamp: float, now: float) -> float:
    """Seconds since the driver's time stamp (monotonic clock, seconds).

    0 if the stamp is not of that clock or has jumped.
    """
    age = now - stamp
    return age if 0 <= age <= OLDEST_STAMP else 0.0
