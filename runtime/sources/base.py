"""What a source of frames is."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
from diinn.runtime.images import UInt8


@dataclass(frozen=True)
class Frame:
    """One captured frame.

    image: uint8 [H, W, 3] BGR; source: name of its source; sequence: its number there, from 0
    captured: wall clock, seconds since the epoch; arrived: ``time.monotonic`` seconds
    path: of an image file, relative to what was asked for; None for cameras and videos
    """

    image: UInt8
    source: str
    sequence: int
    captured: float
    arrived: float
    path: Path | None = None


class Source(ABC):
    """An opened source: start it, read its frames, close it.

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
    failures: Sequence[str] = ()  # what could not be read and was left out, a line each
    files: Sequence[tuple[Path, Path]] = ()  # of still images: (file, its path below what was asked for)

    def start(self) -> None:  # noqa: B027  only live sources go on by themselves
        """Begin to capture; called once, when the source's name is settled."""

    def close(self) -> None:  # noqa: B027  still images hold nothing
        """Let go of the device or file."""

    def _frame(self, image: UInt8, path: Path | None = None) -> Frame:
        frame = Frame(image, self.name, self._captured, time.time(), time.monotonic(), path)
        self._captured += 1
        return frame


def stated_rate(capture: cv2.VideoCapture) -> float:
    """Frames per second as the device or container states them; 30 where it states none."""
    rate = float(capture.get(cv2.CAP_PROP_FPS))
    return rate if 0 < rate <= 1000 else 30.0
