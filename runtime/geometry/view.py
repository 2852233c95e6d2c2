"""Views: what is to be seen of a frame, at which size. Arguments are OpenCV's."""

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

    dsize: (width, height) of the output
    rect: (x, y, width, height) in LR pixels; None for the whole frame
    maps: (map_x, map_y) of a remap; replicate and border_value as for ``remap``
    """

    dsize: Size
    rect: Rect | None = None
    maps: tuple[npt.NDArray[np.generic], npt.NDArray[np.generic] | None] | None = None
    replicate: bool = False
    border_value: float = 0.0
    _cache: dict[object, grid.Queries] = field(default_factory=dict, repr=False)

    @staticmethod
    def resize(dsize: Size) -> View:
        """The whole frame at ``dsize`` (width, height), as ``cv2.resize``."""
        return View(check_size(dsize))

    @staticmethod
    def roi(rect: Rect, dsize: Size) -> View:
        """The rectangle (x, y, width, height), any real values inside the frame, at ``dsize``."""
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
        """The frame at the LR positions of a map, as ``cv2.remap``; see ``grid.remap`` for its forms.

        border: what queries outside the frame become: ``border_value`` (in units of [0, 1], all
            channels) or the nearest edge. The maps must not change while the view is in use.
        """
        if border not in ("constant", "replicate"):
            raise InputError(f"border {border!r} is neither 'constant' nor 'replicate'")
        if map_x.ndim < 2:
            raise InputError(f"a map has at least two axes, got shape {list(map_x.shape)}")
        dsize = check_size((map_x.shape[1], map_x.shape[0]))
        return View(dsize, maps=(map_x, map_y), replicate=border == "replicate", border_value=border_value)

    def decoded_size(self, src_size: Size) -> Size:
        """The size the network decodes: ``dsize``, but along an axis that shrinks the source's own
        sampling, which ``cv2.INTER_AREA`` then reduces (a scale below 1 is not super-resolution)."""
        if self.maps is not None:
            return self.dsize
        if self.rect is not None:
            grid.check_rect(src_size, self.rect)
        width, height = src_size if self.rect is None else self.rect[2:]
        return max(self.dsize[0], math.ceil(width)), max(self.dsize[1], math.ceil(height))

    def queries(self, src_size: Size, scales: tuple[float, float], layout: grid.Layout = grid.NEAREST) -> grid.Queries:
        """The queries over a frame of ``src_size`` (width, height), at ``decoded_size``.

        scales: what a remap's area ratio is clamped to (1 / scale² at both ends)
        layout: the decoder's; InputError for a remap in another layout than DIINN's
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
