"""The base class of sources of frames."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry.calibration import Calibration
from diinn.runtime.geometry.grid import Size
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.sources.slot import Slot
from diinn.runtime.util.file_names import readable

# States of a source. A live one that fails is "retrying" until it comes back, or "failed" when it has given up.
STATES = OPENING, LIVE, RETRYING, ENDED, FAILED = "opening", "live", "retrying", "ended", "failed"


@dataclass(frozen=True)
class Header:
    """What a message of ROS says of the frame it holds.

    Attributes:
        stamp: When it was captured, by its sender: nanoseconds.
        frame_id: The coordinate frame of its camera.
        recorded: When a bag received it: nanoseconds; 0 for what comes from a topic.
        calibration: Of its camera, by the ``camera_info`` beside it; None without one.
    """

    stamp: int
    frame_id: str
    recorded: int = 0
    calibration: Calibration | None = None


@dataclass(frozen=True)
class Frame:
    """One captured frame.

    Attributes:
        image: uint8 [H, W, 3] BGR.
        source: Name of its source.
        sequence: Its number at the source, from 0, never twice; dropped frames leave gaps.
        captured: When it was captured: wall clock, seconds since the epoch.
        arrived: When it reached this process: ``time.monotonic`` seconds.
        path: Of an image file, relative to the folder that was opened; None for cameras and videos.
        header: Of one that came as a message of ROS.
        lag: Seconds from its capture to its arrival, where its stamp tells that; 0 where nothing does.
    """

    image: UInt8
    source: str
    sequence: int
    captured: float
    arrived: float
    path: Path | None = None
    header: Header | None = None
    lag: float = 0.0

    @property
    def size(self) -> Size:
        """(width, height)."""
        return self.image.shape[1], self.image.shape[0]


class Source(ABC):
    """Frames, one at a time, in ``slot``: the newest of a live source, each in turn of any other.

    A subclass implements ``start`` and ``close`` and puts a ``Frame`` into ``slot`` for each it captures.

    Attributes:
        name: For messages, files and statistics.
        slot: Holds the frame that is taken next.
        live: Whether the newest frame wins and others are dropped; otherwise each waits until it is taken.
        rate: Frames per second; None for still images.
        interval: Seconds between the last two frames of a live source, 0 if there were none.
        captured: Frames so far, dropped ones included.
        reconnects: How often a live source came back.
        state: What it is doing.
        trouble: What went wrong last.
        failure: Why it will give no more frames; None while it may.
        failures: What could not be read and was left out, a line each.
        undecodable: Frames of a video or live source that could not be decoded and were left out.
        files: Of still images: (file, its path below the folder that was opened).
        remedy: What to check where it does not open, for messages.
        topic: Of a bag or a robot's bus, the topic it takes; empty for others.
        total: How many frames a file holds, as far as that is known; None where it is not.
        timed: Whether ``--start`` and ``--duration`` are seconds of its own and not of the clock.
    """

    live: bool
    rate: float | None
    remedy = "that it is connected and not in use"
    topic = ""
    total: int | None = None
    timed = False

    def __init__(self, name: str) -> None:
        self.name = readable(name)
        self.slot: Slot[Frame] = Slot(newest=self.live)
        self.state, self.trouble = OPENING, ""
        self.interval = 0.0
        self.captured = self.reconnects = self.undecodable = 0
        self.failure: DiinnError | None = None
        self.failures: list[str] = []
        self.files: Sequence[tuple[Path, Path]] = ()

    @abstractmethod
    def start(self, wake: Callable[[], None]) -> None:
        """Begin to capture, in a thread or process of its own.

        Args:
            wake: To be called when the slot or the state has changed.
        """

    @abstractmethod
    def close(self) -> None:
        """Release the device or file, within a second or two even if it hangs."""

    def fail(self, error: DiinnError) -> None:
        """Give no more frames, because of ``error``."""
        self.failure, self.state = error, FAILED
        self.slot.take()
        self.close()

    @property
    def processes(self) -> list[int]:
        """Ids of the processes that capture for it."""
        return []

    @property
    def ended(self) -> bool:
        """Whether no further frame will come."""
        return self.state in (ENDED, FAILED) and not self.slot.full

    def _frame(self, image: UInt8, path: Path | None = None) -> Frame:
        frame = Frame(image, self.name, self.captured, time.time(), time.monotonic(), path)
        self.captured += 1
        return frame


def stated_rate(capture: cv2.VideoCapture) -> float:
    """Frames per second as the device or container states them; 30 where it states none."""
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate <= 1000 else 30.0
