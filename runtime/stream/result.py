"""The result of a stream: one view of one frame."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from diinn.runtime.geometry.calibration import Calibration
from diinn.runtime.geometry.view import View
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.noise.strength import NONE, Strength
from diinn.runtime.sources.base import Frame

# How a view was made: whole, at half its size and enlarged again, or without the network.
WHOLE, REDUCED, BICUBIC = "full", "reduced", "bicubic"
QUALITIES = (WHOLE, REDUCED, BICUBIC)
ZOOM = "~"  # names of views that a viewer opened begin with it; files and pipes do not get them


@dataclass(frozen=True)
class Result:
    """One view of one frame.

    Its pixels are shared by all that receive it and cannot be written: draw on ``image.copy()``.

    Attributes:
        image: The view, uint8 [h, w, 3] BGR.
        camera: The camera's name.
        view: The view's name.
        frame: What it was made from.
        quality: "full"; under a deadline also "reduced" (decoded at half its size and enlarged) or "bicubic".
        view_geometry: The view itself.
        finished: ``time.monotonic`` seconds.
        expires: ``time.monotonic`` seconds after which it is too old to be taken.
        strength: What the network was given beside the frame, so how much was cleaned; none of a bicubic one.
        calibration: Of the camera, where it is known.
    """

    image: UInt8
    camera: str
    view: str
    frame: Frame
    quality: str
    view_geometry: View
    finished: float
    expires: float = math.inf
    strength: Strength = NONE
    calibration: Calibration | None = None

    @property
    def key(self) -> tuple[str, str]:
        """(camera, view): the stream it belongs to."""
        return self.camera, self.view

    @property
    def sequence(self) -> int:
        """The frame's number at its camera, from 0; dropped frames leave gaps."""
        return self.frame.sequence

    @property
    def captured(self) -> float:
        """When the frame was captured: wall clock, seconds since the epoch."""
        return self.frame.captured

    @property
    def age(self) -> float:
        """Seconds since the frame arrived, until now; since it was captured, where its stamp tells that."""
        return time.monotonic() - self.frame.arrived + self.frame.lag
