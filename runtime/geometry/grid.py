"""Geometry: which LR pixels an output pixel is computed from, and where it lies relative to them.

Paper, section 3.2 and Figure 3: pixels are squares. What one *query* holds is a decoder's ``Layout``. DIINN's is
the nearest LR pixel, the local coordinate (y, x) of the output pixel's centre relative to that LR pixel's
centre, in units of half an LR pixel (so in [-1, 1]), and the area ratio (LR pixels per output pixel).

This is the project's only statement of the geometry and it needs NumPy alone. Frames are ``(height,
width)`` shapes here; what a user calls takes ``(width, height)`` and is named ``size``.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import InputError
from diinn.runtime.geometry import remap_maps

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Size = tuple[int, int]  # (width, height)
Ids = slice | npt.NDArray[np.intp]  # which queries of a view, row-major over its output

_INT64_SAFE = 2**62


@dataclass(frozen=True)
class Layout:
    """What a query of a decoder consists of: one or several *samples*, each an LR pixel and numbers.

    Attributes:
        columns: Names of a sample's numbers, float32, in order: the position (y, x) relative to the LR pixel, then
            ``ratio``: LR pixels per output pixel, by area; ``cell``: the same along y;
            ``cell_y``, ``cell_x``: twice that along each axis; ``weight``: the sample's share of the result.
        shifts: The LR pixels sampled along each axis are those under the position moved by these halves of an LR
            pixel; all pairs of them (y, x), in order, are the samples.
        corner: The position is the output pixel's top-left corner, relative to the LR pixel's own, in LR pixels
            (so in [0, 1)); otherwise it is the centre, relative to the centre, in half LR pixels.
    """

    columns: tuple[str, ...]
    shifts: tuple[int, ...] = (0,)
    corner: bool = False

    @property
    def samples(self) -> int:
        return len(self.shifts) ** 2

    @property
    def weighted(self) -> bool:
        return self.columns[-1] == "weight"


NEAREST = Layout(("local_y", "local_x", "ratio"))  # DIINN
ENSEMBLE = Layout(("local_y", "local_x", "cell_y", "cell_x", "weight"), shifts=(-1, 1))  # LIIF
CORNER = Layout(("corner_y", "corner_x", "cell"), corner=True)  # Meta-SR
LAYOUTS = {layout.columns: layout for layout in (NEAREST, ENSEMBLE, CORNER)}


@dataclass(frozen=True)
class Axis:
    """One axis of a regular grid of ``n`` output pixels.

    index: the LR pixel sampled, int32 [n], non-decreasing
    local: position relative to it, float32 [n]: of centre to centre in half LR pixels, or of corner to corner in LR
        pixels (``Layout.corner``)
    ratio: LR pixels per output pixel along this axis (1 / scale)
    """

    index: Int32
    local: Float32
    ratio: float


def axis(
    n_in: int, n_out: int, start: float = 0, extent: float | None = None, *, shift: int = 0, corner: bool = False
) -> Axis:
    """Sample ``n_out`` output pixels over [start, start + extent) of an axis of ``n_in`` LR pixels.

    The index is ``floor(start + (2i + 1) · extent / (2 · n_out))`` in exact arithmetic: at a half
    point (an output centre on the border of two LR pixels) it takes the later pixel, always. For the
    full frame this is ``floor((2i + 1) · n_in / (2 · n_out))``. ``shift`` and ``corner`` are as in ``Layout``;
    a shifted index stays in the frame.
    """
    begin, length = _fraction(start), _fraction(n_in if extent is None else extent)
    unit = math.lcm(begin.denominator, length.denominator)
    first, step, den = int(begin * unit) * 2 * n_out, int(length * unit), 2 * n_out * unit
    biggest = max(abs(first) + 2 * n_out * step, 2 * den) * 4
    # In place: what grows with the output's side is what a large output costs beyond itself.
    position = np.arange(not corner, 2 * n_out, 2, dtype=np.int64 if biggest < _INT64_SAFE else object)
    position *= step
    position += first  # in units of 1 / den
    index = (position + shift * (den // 2)) // den
    np.clip(index, 0, n_in - 1, out=index)
    position -= index * den
    if not corner:
        position *= 2
        position -= den
    local = position.astype(np.float64)
    local /= float(den)
    return Axis(index.astype(np.int32), local.astype(np.float32), float(length / n_out))


def _fraction(value: float) -> Fraction:
    """``value`` to the nearest 2⁻⁴⁰ of a pixel: far finer than a float32 coordinate, and bounded."""
    return Fraction(round(Fraction(value) * 2**40), 2**40)


class Queries(ABC):
    """The queries of one view over one LR frame.

    Attributes:
        layout: What a query consists of.
        shape: The output's (height, width).
        src_width: The frame's width, LR pixels.
        scales: Smallest and largest scale among the queries and axes, before any clamping.
        outside: Which queries lie outside the frame and get the border value, bool [h·w]; None if none do.
    """

    layout: Layout
    shape: tuple[int, int]
    src_width: int
    scales: tuple[float, float]
    outside: npt.NDArray[np.bool_] | None

    @property
    def count(self) -> int:
        return self.shape[0] * self.shape[1]

    @abstractmethod
    def fill(self, ids: Ids, index: Int32, query: Float32) -> None:
        """Write queries into arrays; the samples of a query stand one after another.

        Args:
            ids: Which queries.
            index: Gets the LR pixels, row-major in the frame, int32 [n·samples].
            query: Gets the layout's numbers, float32 [n·samples, columns].
        """

    def arrays(self, ids: Ids | None = None) -> tuple[Int32, Float32]:
        """``fill`` into new arrays: index int32 [n·samples], query float32 [n·samples, columns] of ``ids``, or all."""
        ids = slice(0, self.count) if ids is None else ids
        count = (ids.stop - ids.start if isinstance(ids, slice) else len(ids)) * self.layout.samples
        index, query = np.empty(count, np.int32), np.empty((count, len(self.layout.columns)), np.float32)
        self.fill(ids, index, query)
        return index, query

    @abstractmethod
    def in_rows(self, top: int, bottom: int) -> Ids:
        """The queries whose LR row, that of the first sample, is in [top, bottom)."""


class RegularQueries(Queries):
    """A separable grid: short axes, one pair per sample's shift, describe any number of output pixels."""

    def __init__(self, rows: tuple[Axis, ...], cols: tuple[Axis, ...], src_width: int, layout: Layout) -> None:
        self.rows, self.cols, self.src_width, self.layout = rows, cols, src_width, layout
        y, x = rows[0].ratio, cols[0].ratio
        self.shape = (len(rows[0].index), len(cols[0].index))
        self.scales = (1 / max(y, x), 1 / min(y, x))
        self.outside = None
        named = {"ratio": y * x, "cell": y, "cell_y": 2 * y, "cell_x": 2 * x}
        # What follows the position in every sample alike.
        self.constants = np.array([named[name] for name in layout.columns[2:] if name in named], np.float32)

    def fill(self, ids: Ids, index: Int32, query: Float32) -> None:
        width = self.shape[1]
        flat = np.arange(ids.start, ids.stop) if isinstance(ids, slice) else ids
        if self.count < 2**31:
            flat = flat.astype(np.int32)  # divides faster
        row, col = np.divmod(flat, flat.dtype.type(width))
        step = self.layout.samples
        for first, (along_y, along_x) in enumerate(itertools.product(self.rows, self.cols)):
            np.multiply(along_y.index[row], np.int32(self.src_width), out=index[first::step])
            index[first::step] += along_x.index[col]
            query[first::step, 0] = along_y.local[row]
            query[first::step, 1] = along_x.local[col]
        query[:, 2 : 2 + len(self.constants)] = self.constants
        if self.layout.weighted:
            query[:, -1] = _weights(query, step)

    def in_rows(self, top: int, bottom: int) -> slice:
        first, last = np.searchsorted(self.rows[0].index, [top, bottom])
        return slice(int(first) * self.shape[1], int(last) * self.shape[1])


def _weights(query: Float32, samples: int) -> Float32:
    """Each sample's weight [n·samples].

    The area between the position and the diagonally opposite sample, as a share of all (LIIF, section 3, local
    ensemble).
    """
    area = np.abs(query[:, 0] * query[:, 1]).reshape(-1, samples) + np.float32(1e-9)
    weights: Float32 = area[:, ::-1] / area.sum(1, keepdims=True)
    return weights.reshape(-1)


class MapQueries(Queries):
    """Any set of positions, in DIINN's layout."""

    layout = NEAREST

    def __init__(
        self,
        shape: tuple[int, int],
        src_width: int,
        index: Int32,  # [h·w]
        local: Float32,  # [h·w, 2] (y, x)
        ratio: Float32,  # [h·w]
        scales: tuple[float, float],
        outside: npt.NDArray[np.bool_] | None,
    ) -> None:
        self.shape, self.src_width, self.scales, self.outside = shape, src_width, scales, outside
        self.index, self.local, self.ratio = index, local, ratio

    def fill(self, ids: Ids, index: Int32, query: Float32) -> None:
        index[:] = self.index[ids]
        query[:, :2] = self.local[ids]
        query[:, 2] = self.ratio[ids]

    def in_rows(self, top: int, bottom: int) -> npt.NDArray[np.intp]:
        row = self.index // self.src_width
        return np.flatnonzero((row >= top) & (row < bottom))


def resize(src_size: tuple[int, int], dsize: tuple[int, int], layout: Layout = NEAREST) -> RegularQueries:
    """The whole frame of ``src_size`` (width, height) at ``dsize`` (width, height)."""
    return roi(src_size, (0, 0, *src_size), dsize, layout)


def roi(
    src_size: tuple[int, int], rect: tuple[float, float, float, float], dsize: tuple[int, int], layout: Layout = NEAREST
) -> RegularQueries:
    """A rectangle (x, y, width, height) in LR pixels, any real values inside the frame, at ``dsize``.

    Pixel j of the frame covers [j, j + 1): the whole frame is (0, 0, width, height).

    Raises:
        InputError: The rectangle is empty, not finite or not inside the frame.
    """
    check_rect(src_size, rect)
    x, y, w, h = rect
    rows, cols = (
        tuple(axis(*along, shift=shift, corner=layout.corner) for shift in layout.shifts)
        for along in ((src_size[1], dsize[1], y, h), (src_size[0], dsize[0], x, w))
    )
    return RegularQueries(rows, cols, src_size[0], layout)


def check_rect(src_size: tuple[int, int], rect: tuple[float, float, float, float]) -> None:
    """InputError unless ``rect`` (x, y, width, height) lies inside a frame of ``src_size`` (width, height)."""
    width, height = src_size
    x, y, w, h = rect
    inside = x >= 0 and y >= 0 and x + w <= width and y + h <= height
    if not (np.isfinite(rect).all() and w > 0 and h > 0 and inside):
        raise InputError(
            f"ROI x,y,w,h = {x:g},{y:g},{w:g},{h:g} is not inside the {width}x{height} frame: "
            f"use 0 <= x, x+w <= {width}, 0 <= y, y+h <= {height} and a width and height above 0"
        )


def remap(
    src_size: tuple[int, int],
    map_x: npt.NDArray[np.generic],
    map_y: npt.NDArray[np.generic] | None = None,
    *,
    replicate: bool = False,
    ratio_range: tuple[float, float] = (0.0, 1.0),
) -> MapQueries:
    """The positions of a map that ``cv2.remap`` takes, as queries.

    Args:
        src_size: (width, height) of the frame.
        map_x: Float map [h, w] of LR positions along x in pixels, pixel centres at whole numbers; or one map
            [h, w, 2] of (x, y); or the first of OpenCV's fixed-point pair, int16 [h, w, 2].
        map_y: The same along y; None beside a map [h, w, 2]; or the second of the fixed-point pair, uint16 [h, w],
            steps of 1/32 pixel. The area ratio of such a pair is smoothed over those steps.
        replicate: Positions outside the frame take its nearest edge; otherwise they are ``outside``.
        ratio_range: What the area ratio |det J| (LR px² per output px, J by central differences, one-sided at edges
            and jumps) is clamped to.
    """
    width, height = src_size
    x, y, fixed_point = remap_maps.positions(map_x, map_y)
    ratio = remap_maps.area_ratio(x, y)
    if fixed_point:
        ratio = remap_maps.box_mean(ratio, radius=4)
    within = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
    seen = ratio[within] if within.any() else ratio
    finest, coarsest = max(float(seen.min()), 1e-12), max(float(seen.max()), 1e-12)
    pos_x = np.clip(np.nan_to_num(x) + 0.5, 0, width)
    pos_y = np.clip(np.nan_to_num(y) + 0.5, 0, height)
    col = np.minimum(pos_x.astype(np.int32), width - 1)
    row = np.minimum(pos_y.astype(np.int32), height - 1)
    local = np.stack([2 * (pos_y - row) - 1, 2 * (pos_x - col) - 1], axis=-1)
    outside = ~within if not replicate else np.isnan(x) | np.isnan(y)
    return MapQueries(
        shape=(x.shape[0], x.shape[1]),
        src_width=width,
        index=(row * np.int32(width) + col).reshape(-1),
        local=local.reshape(-1, 2).astype(np.float32),
        ratio=np.clip(ratio, *ratio_range).reshape(-1).astype(np.float32),
        scales=(coarsest**-0.5, finest**-0.5),
        outside=outside.reshape(-1) if outside.any() else None,
    )
