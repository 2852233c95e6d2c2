"""Views as ``--view`` and a file of cameras state them, before the size of the frames is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from diinn.runtime.errors import InputError, unknown
from diinn.runtime.geometry.calibration import Calibration, pinhole, turned
from diinn.runtime.geometry.calibration_file import scaling
from diinn.runtime.geometry.grid import Float32, Size, check_rect
from diinn.runtime.geometry.view import Rect, View, check_size
from diinn.runtime.util import memory
from diinn.runtime.util.text import redacted

FULL, ROI, RECTIFY, VIRTUAL = "full", "roi", "rectify", "virtual"
KINDS = (FULL, ROI, RECTIFY, VIRTUAL)
EXAMPLES = {
    FULL: "full:640x480",
    ROI: "roi:40,30,80,60:320x240",
    RECTIFY: "rectify:calib.yaml:640x480",
    VIRTUAL: "virtual:20,-10,60:640x480",
}
WHOLE: Rect = (0.0, 0.0, 1.0, 1.0)
BYTES_A_PIXEL = 200  # of a map and what is derived from it, while that is done


@dataclass(frozen=True)
class ViewSpec:
    """A view of frames whose size is not known yet.

    Attributes:
        kind: "full", "roi", "rectify" or "virtual".
        dsize: (width, height) of the output; None with a ``scale``.
        scale: Output pixels per frame pixel, in place of ``dsize``.
        rect: Of an ROI: (x, y, width, height) in LR pixels.
        calibration: Of a rectified view; None for the camera's own.
        pan: Of a virtual camera: degrees to the right.
        tilt: Of a virtual camera: degrees up.
        fov: Of a virtual camera: degrees seen across.
        crop: (x, y, width, height), the part of the view that is wanted, as shares of it.
        crop_size: That part's (width, height).

    Raises:
        InputError: A value is out of its range; the message gives an example.
    """

    kind: str = FULL
    dsize: Size | None = None
    scale: float | None = None
    rect: Rect | None = None
    calibration: Calibration | None = None
    pan: float = 0.0
    tilt: float = 0.0
    fov: float = 0.0
    crop: Rect = WHOLE
    crop_size: Size | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(unknown("kind of view", self.kind, KINDS))
        for size in filter(None, (self.dsize, self.crop_size)):
            check_size(size)
        if self.scale is not None and not 0 < self.scale <= 1000:
            raise InputError(f"scale {self.scale:g} is not above 0 and up to 1000")
        turned_far = not (abs(self.pan) <= 180 and abs(self.tilt) <= 90 and 0 < self.fov < 179)
        if self.kind == VIRTUAL and turned_far:
            raise InputError(
                f"a virtual view with pan {self.pan:g}, tilt {self.tilt:g}, fov {self.fov:g}: pan is in [-180, 180], "
                "tilt in [-90, 90], fov in (0, 179), degrees"
            )
        if self.kind in (RECTIFY, VIRTUAL) and self.dsize is None:
            raise InputError(f"a {self.kind} view has a size of its own: write {EXAMPLES[self.kind]}")

    @staticmethod
    def parse(text: str, folder: Path | None = None) -> ViewSpec:
        """A view from its text form.

        Args:
            text: ``full:640x480``, ``roi:x,y,w,h:320x240``, ``rectify:calib.yaml:640x480`` (``rectify:640x480`` for the
                camera's own calibration) or ``virtual:pan,tilt,fov:640x480``.
            folder: What a calibration's path is relative to; None for the working directory.

        Raises:
            InputError: The text is none of these, or the calibration cannot be read.
        """
        kind, _, rest = text.partition(":")
        if kind not in KINDS:
            raise InputError(f"view {text!r}: " + unknown("kind of view", kind, KINDS))
        arguments, _, size = rest.rpartition(":")
        dsize = parse_size(size, f"view {text!r}", EXAMPLES[kind])
        if kind == FULL and not arguments:
            return ViewSpec(FULL, dsize)
        if kind == ROI:
            return ViewSpec(ROI, dsize, rect=parse_rect(arguments, f"view {text!r}", EXAMPLES[ROI]))
        if kind == RECTIFY:
            path = (folder or Path()) / arguments
            return ViewSpec(RECTIFY, dsize, calibration=Calibration.load(path) if arguments else None)
        if kind == VIRTUAL:
            pan, tilt, fov = _numbers(arguments, 3, f"view {text!r}", EXAMPLES[VIRTUAL])
            return ViewSpec(VIRTUAL, dsize, pan=pan, tilt=tilt, fov=fov)
        raise InputError(f"view {text!r}: write {EXAMPLES[kind]}")

    @property
    def calibrated(self) -> bool:
        """Whether a camera's calibration makes a difference to it."""
        return self.kind in (RECTIFY, VIRTUAL) and self.calibration is None

    def cropped(self, part: Rect, dsize: Size) -> ViewSpec:
        """A part of this view.

        Args:
            part: (x, y, width, height) as shares of this view.
            dsize: (width, height) of the part's output.
        """
        x, y, w, h = self.crop
        crop = (x + part[0] * w, y + part[1] * h, part[2] * w, part[3] * h)
        return replace(self, crop=crop, crop_size=check_size(dsize))

    def view(self, src_size: Size, calibration: Calibration | None = None, *, reduce: int = 1) -> View:
        """The view of frames of a known size.

        Args:
            src_size: (width, height) of the frames.
            calibration: The camera's, for rectified and virtual views; a virtual view without one assumes a camera
                without distortion.
            reduce: Divides the output's size along both axes.

        Raises:
            InputError: The view does not fit such frames, or lacks a calibration.
        """
        rect = self._rect(src_size)
        dsize = self.crop_size or self.dsize or self._scaled(rect[2:])
        dsize = (max(1, dsize[0] // reduce), max(1, dsize[1] // reduce))
        if self.kind in (RECTIFY, VIRTUAL):
            return self._remapped(src_size, calibration, dsize)
        if self.kind == FULL and self.crop == WHOLE:
            return View.resize(dsize)
        return View.roi(rect, dsize)

    def _rect(self, src_size: Size) -> Rect:
        if self.rect is not None:
            check_rect(src_size, self.rect)
        x, y, w, h = self.rect or (0.0, 0.0, *src_size)
        (left, across), (top, down) = (
            _within(start + share * whole, extent * whole, limit)
            for start, share, extent, whole, limit in (
                (x, self.crop[0], self.crop[2], w, src_size[0]),
                (y, self.crop[1], self.crop[3], h, src_size[1]),
            )
        )
        return left, top, across, down

    def _scaled(self, size: tuple[float, float]) -> Size:
        """Whole pixels; rounding alone never makes a view smaller than its source."""
        scale = self.scale or 1.0
        width, height = (max(1, round(n * scale), math.ceil(n) if scale >= 1 else 1) for n in size)
        return width, height

    def _remapped(self, src_size: Size, calibration: Calibration | None, dsize: Size) -> View:
        known = self.calibration or calibration
        if known is None and self.kind == RECTIFY:
            raise InputError(
                f"a rectified view needs a calibration: the view's, {EXAMPLES[RECTIFY]}, or the camera's, "
                "--calibration FILE or 'calibration:' in a file of cameras"
            )
        camera = known.fitted(src_size) if known else Calibration.assumed(src_size)
        memory.require(dsize[0] * dsize[1] * BYTES_A_PIXEL, f"a {dsize[0]}x{dsize[1]} {self.kind} view")
        x, y, w, h = self.crop
        inner = (dsize[0] / w, dsize[1] / h)  # the whole view at the crop's scale, not whole pixels
        if self.kind == RECTIFY:
            rotation, projection = camera.rectified(inner)
        else:
            whole = self.dsize or dsize
            rotation = turned(self.pan, self.tilt)
            projection = scaling(inner[0] / whole[0], inner[1] / whole[1]) @ pinhole(self.fov, whole)
        projection = scaling(1, 1, x * inner[0], y * inner[1]) @ projection
        map_x, map_y = camera.maps(rotation, projection, dsize)
        if self.kind == VIRTUAL and self.crop == WHOLE and not _meets(map_x, map_y, src_size):
            raise InputError(f"a view turned by {self.pan:g},{self.tilt:g} degrees sees nothing of this camera")
        offset = projection @ np.linalg.inv(camera.projection) @ camera.offset if self.kind == RECTIFY else np.zeros(3)
        whole_projection = np.column_stack([projection, offset])
        return replace(View.remap(map_x, map_y), camera=(rotation, whole_projection) if known else None)


def _within(start: float, extent: float, limit: float) -> tuple[float, float]:
    """An interval that rounding cannot push over ``limit``."""
    extent = min(extent, limit - start)
    while start + extent > limit:
        extent = math.nextafter(extent, 0)
    return start, extent


def _meets(map_x: Float32, map_y: Float32, src_size: Size) -> bool:
    """Whether any position of a map lies in a frame of ``src_size``."""
    return bool(
        ((np.abs(map_x * 2 - src_size[0]) < src_size[0]) & (np.abs(map_y * 2 - src_size[1]) < src_size[1])).any()
    )


def parse_size(text: str, what: str, example: str) -> Size:
    """(width, height) from ``WIDTHxHEIGHT``; ``what`` and ``example`` are for InputError's message."""
    width, x, height = text.lower().partition("x")
    if not (x and all(n.isascii() and n.isdigit() for n in (width, height))):
        raise InputError(f"{what}: {redacted(text)[:30]!r} is not WIDTHxHEIGHT in pixels: write {example}")
    if max(len(width), len(height)) > 9:
        raise InputError(f"{what}: {redacted(text)[:30]!r} is too large a size")
    return check_size((int(width), int(height)))


def parse_rect(text: str, what: str, example: str) -> Rect:
    """A rectangle from ``x,y,width,height``, real-valued LR pixels; ``what`` and ``example`` are for InputError."""
    x, y, w, h = _numbers(text, 4, what, example)
    if min(x, y) < 0 or min(w, h) <= 0:
        raise InputError(f"{what}: {text!r} is not x,y,w,h inside the frame: write {example}")
    return x, y, w, h


def _numbers(text: str, count: int, what: str, example: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(math.isfinite, values)):
        raise InputError(f"{what}: {text!r} is not {count} numbers, write {example}")
    return values
