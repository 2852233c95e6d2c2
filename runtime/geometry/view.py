"""Views: which part of a frame is shown, at which size. Arguments are OpenCV's."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import InputError
from diinn.runtime.geometry import grid
from diinn.runtime.geometry.grid import Size

Rect = tuple[float, float, float, float]  # (x, y, width, height) in LR pixels
LARGEST_SIDE = 1_000_000


@dataclass(frozen=True, eq=False)
class View:
    """A view of frames of any size; make one with ``resize``, ``roi`` or ``remap`` and use it again.

    Its geometry is computed once for each size of frames.

    Attributes:
        dsize: (width, height) of the output.
        rect: (x, y, width, height) in LR pixels; None for the whole frame.
        maps: (map_x, map_y) of a remap.
        replicate: Whether positions of a remap outside the frame take its nearest edge.
        border_value: What they become otherwise, in units of [0, 1], all channels.
        camera: Of a rectified or virtual view of a calibrated camera (rotation [3, 3] from the camera's axes to the
            view's, projection [3, 4]); None of any other.
    """

    dsize: Size
    rect: Rect | None = None
    maps: tuple[npt.NDArray[np.generic], npt.NDArray[np.generic] | None] | None = None
    replicate: bool = False
    border_value: float = 0.0
    camera: tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None = None
    _cache: dict[object, grid.Queries] = field(default_factory=dict, repr=False)

    @staticmethod
    def resize(dsize: Size) -> View:
        """The whole frame at ``dsize`` (width, height), as ``cv2.resize``.

        Raises:
            InputError: ``dsize`` is not two whole numbers from 1 to a million.
        """
        return View(check_size(dsize))

    @staticmethod
    def roi(rect: Rect, dsize: Size) -> View:
        """A rectangle of the frame.

        Args:
            rect: (x, y, width, height) in LR pixels, any real values inside the frame; pixel j covers [j, j + 1).
            dsize: (width, height) of the output.

        Raises:
            InputError: ``rect`` is not four numbers, or ``dsize`` no size. Whether the rectangle lies inside a frame
                is checked when the frame is decoded.
        """
        try:
            x, y, width, height = (float(v) for v in rect)
        except (TypeError, ValueError):
            raise InputError(f"ROI {rect!r} is not four numbers x, y, width, height") from None
        return View(check_size(dsize), (x, y, width, height))

    @staticmethod
    def remap(
        map_x: npt.NDArray[np.generic],
        map_y: npt.NDArray[np.generic] | None = None,
        *,
        border: Literal["constant", "replicate"] = "constant",
        border_value: float = 0.0,
    ) -> View:
        """The frame at the LR positions of a map, as ``cv2.remap``.

        The maps must not change while the view is in use.

        Args:
            map_x: Float map [h, w] of positions along x in LR pixels, pixel centres at whole numbers; or one map
                [h, w, 2] of (x, y); or the first of OpenCV's fixed-point pair, int16 [h, w, 2].
            map_y: The same along y; None beside a map [h, w, 2]; or the second of the fixed-point pair, uint16 [h, w].
            border: What positions outside the frame become: "constant" for ``border_value``, "replicate" for the
                nearest edge.
            border_value: In units of [0, 1], all channels.

        Raises:
            InputError: ``border`` is neither, or a map has less than two axes.
        """
        if border not in ("constant", "replicate"):
            raise InputError(f"border {border!r} is neither 'constant' nor 'replicate'")
        if map_x.ndim < 2:
            raise InputError(f"a map has at least two axes, got shape {list(map_x.shape)}")
        dsize = check_size((map_x.shape[1], map_x.shape[0]))
        return View(dsize, maps=(map_x, map_y), replicate=border == "replicate", border_value=border_value)

    def decoded_size(self, src_size: Size) -> Size:
        """The size the network decodes for frames of ``src_size``, both (width, height).

        That is ``dsize``, but along an axis that shrinks the source's own sampling, which ``cv2.INTER_AREA`` then
        reduces: a scale below 1 is not super-resolution.
        """
        if self.maps is not None:
            return self.dsize
        if self.rect is not None:
            grid.check_rect(src_size, self.rect)
        width, height = src_size if self.rect is None else self.rect[2:]
        return max(self.dsize[0], math.ceil(width)), max(self.dsize[1], math.ceil(height))

    def queries(self, src_size: Size, scales: tuple[float, float], layout: grid.Layout = grid.NEAREST) -> grid.Queries:
        """The queries over a frame of ``src_size`` (width, height), at ``decoded_size``.

        Args:
            src_size: Of the frames.
            scales: What a remap's area ratio is clamped to (1 / scale² at both ends).
            layout: The decoder's.

        Raises:
            InputError: The view does not fit such frames, or is a remap in another layout than DIINN's.
        """
        if self.maps is not None and layout is not grid.NEAREST:
            raise InputError(
                f"remap needs a DIINN model, this one's queries are {', '.join(layout.columns)}: "
                "open a DIINN bundle, or cv2.remap what resize returns"
            )
        key = (src_size, scales, layout)
        if key not in self._cache:
            self._cache.clear()
            self._cache[key] = self._queries(src_size, scales, layout)
        return self._cache[key]

    def _queries(self, src_size: Size, scales: tuple[float, float], layout: grid.Layout) -> grid.Queries:
        if self.maps is None:
            rect = self.rect or (0, 0, *src_size)
            return grid.roi(src_size, rect, self.decoded_size(src_size), layout)
        limits = 1 / scales[1] ** 2, 1 / scales[0] ** 2
        return grid.remap(src_size, *self.maps, replicate=self.replicate, ratio_range=limits)


def check_size(size: Size) -> Size:
    """``size`` (width, height) as whole numbers from 1 to a million, or InputError."""
    try:
        width, height = size
        whole = int(width) == width and int(height) == height
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"size {size!r} is not (width, height)") from None
    if not (whole and 1 <= width <= LARGEST_SIDE and 1 <= height <= LARGEST_SIDE):
        raise InputError(f"size {width}x{height} is not two whole numbers from 1 to {LARGEST_SIDE}")
    return int(width), int(height)
