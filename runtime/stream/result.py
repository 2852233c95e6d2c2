"""What a stream gives: one view of one frame."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from diinn.runtime.geometry.view import View
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.noise.strength import NONE, Strength
from diinn.runtime.sources.base import Frame

# What was done to a view: all it asked for, half its size enlarged again, or no network at all.
WHOLE, REDUCED, BICUBIC = "full", "reduced", "bicubic"
QUALITIES = (WHOLE, REDUCED, BICUBIC)
ZOOM = "~"  # views that a viewer asked for begin with it; files and pipes do not get them


@dataclass(frozen=True)
class Result:
    """One view of one frame; its pixels belong to all who get it and cannot be written: draw on ``image.copy()``.

    image: uint8 [h, w, 3] BGR; camera, view: their names; frame: what it was made from
    quality: one of ``QUALITIES``; view_geometry: the view itself; finished: ``time.monotonic`` seconds
    expires: ``time.monotonic`` seconds after which it is too old to be taken
    strength: what the network was given beside the frame, so how much was cleaned; none of a bicubic one
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
        """Seconds since the frame arrived, until now."""
        return time.monotonic() - self.frame.arrived
