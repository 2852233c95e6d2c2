"""What a source of frames is."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry.grid import Size
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.sources.slot import Slot
from diinn.runtime.util.file_names import readable

# What a source is doing. A live one that fails is "retrying" until it comes back, or "failed" when it gave up.
STATES = OPENING, LIVE, RETRYING, ENDED, FAILED = "opening", "live", "retrying", "ended", "failed"


@dataclass(frozen=True)
class Frame:
    """One captured frame.

    image: uint8 [H, W, 3] BGR; source: name of its source; sequence: its number there, from 0, never twice
    captured: wall clock, seconds since the epoch; arrived: ``time.monotonic`` seconds, here
    path: of an image file, relative to what was asked for; None for cameras and videos
    """

    image: UInt8
    source: str
    sequence: int
    captured: float
    arrived: float
    path: Path | None = None

    @property
    def size(self) -> Size:
        """(width, height)."""
        return self.image.shape[1], self.image.shape[0]


class Source(ABC):
    """Frames, one at a time, in ``slot``: the newest of a live source, each in turn of any other.

    live: newest frame wins, others are dropped; rate: frames per second, None for still images
    interval: seconds between the last two frames of a live source, 0 if there were none
    captured: frames so far, dropped ones included; reconnects: how often a live source came back
    state, trouble: what it is doing, and what went wrong last; failure: why it will give no more frames
    failures: what could not be read and was left out, a line each
    undecodable: frames that could not be decoded and were left out, each of a video or live source
    files: of still images: (file, its path below what was asked for)
    remedy: what is to be checked where it does not open
    """

    live: bool
    rate: float | None
    remedy = "that it is connected and not in use"

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
        """Begin to capture; ``wake`` is called when the slot or the state has changed."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the device or file, within a second or two even if it hangs."""

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
