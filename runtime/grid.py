"""Geometry: which LR pixel an output pixel asks, and where inside that pixel it lies.

Paper, section 3.2 and Figure 3: pixels are squares. A *query* is the index of the nearest LR pixel,
the local coordinate (y, x) of the output pixel's centre relative to that LR pixel's centre, in units
of half an LR pixel (so in [-1, 1]), and the area ratio (LR pixels per output pixel).

This is the project's only statement of the geometry and it needs NumPy alone. Frames are ``(height,
width)`` shapes here; what a user calls takes ``(width, height)`` sizes and says ``size``.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import InputError

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Ids = slice | npt.NDArray[np.intp]  # which queries of a view, row-major over its output

QUERY = ("local_y", "local_x", "ratio")  # columns of a DIINN query
_INT64_SAFE = 2**62


@dataclass(frozen=True)
class Axis:
    """One axis of a regular grid of ``n`` output pixels.

    index: nearest LR pixel, int32 [n], non-decreasing
    local: local coordinate, float32 [n], in [-1, 1]
    ratio: LR pixels per output pixel along this axis (1 / scale)
    """

    index: Int32
    local: Float32
    ratio: float


def axis(n_in: int, n_out: int, start: float = 0, extent: float | None = None) -> Axis:
    """Sample ``n_out`` output pixels over [start, start + extent) of an axis of ``n_in`` LR pixels.

    The index is ``floor(start + (2i + 1) · extent / (2 · n_out))`` in exact arithmetic: at a half
    point (an output centre on the border of two LR pixels) it takes the later pixel, always. For the
    full frame this is ``floor((2i + 1) · n_in / (2 · n_out))``.
    """
    begin, length = _fraction(start), _fraction(n_in if extent is None else extent)
    unit = math.lcm(begin.denominator, length.denominator)
    first, step, den = int(begin * unit) * 2 * n_out, int(length * unit), 2 * n_out * unit
    biggest = max(abs(first) + 2 * n_out * step, 2 * den) * 2
    # In place: what grows with the output's side is what a large output costs beyond itself.
    position = np.arange(1, 2 * n_out, 2, dtype=np.int64 if biggest < _INT64_SAFE else object)
    position *= step
    position += first  # in units of 1 / den
    index = position // den
    np.clip(index, 0, n_in - 1, out=index)
    position -= index * den
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

    shape: the output's (height, width)
    scales: smallest and largest scale among the queries and axes, before any clamping
    outside: which queries lie outside the frame and get the border value, bool [h·w]; None if none do
    """

    shape: tuple[int, int]
    scales: tuple[float, float]
    outside: npt.NDArray[np.bool_] | None

    @property
    def count(self) -> int:
        return self.shape[0] * self.shape[1]

    @abstractmethod
    def fill(self, ids: Ids, index: Int32, query: Float32) -> None:
        """Write queries ``ids`` to ``index`` [n] (row-major in the LR frame) and ``query`` [n, 3]."""

    def arrays(self, ids: Ids | None = None) -> tuple[Int32, Float32]:
        """``fill`` into new arrays: index int32 [n] and query float32 [n, 3] of ``ids``, or of all."""
        ids = slice(0, self.count) if ids is None else ids
        count = ids.stop - ids.start if isinstance(ids, slice) else len(ids)
        index, query = np.empty(count, np.int32), np.empty((count, len(QUERY)), np.float32)
        self.fill(ids, index, query)
        return index, query

    @abstractmethod
    def in_rows(self, top: int, bottom: int) -> Ids:
        """The queries whose LR row is in [top, bottom)."""


class RegularQueries(Queries):
    """A separable grid: two short axes describe any number of output pixels."""

    def __init__(self, rows: Axis, cols: Axis, src_width: int) -> None:
        self.rows, self.cols, self.src_width = rows, cols, src_width
        self.shape = (len(rows.index), len(cols.index))
        self.ratio = rows.ratio * cols.ratio
        self.scales = (1 / max(rows.ratio, cols.ratio), 1 / min(rows.ratio, cols.ratio))
        self.outside = None

    def fill(self, ids: Ids, index: Int32, query: Float32) -> None:
        width = self.shape[1]
        flat = np.arange(ids.start, ids.stop) if isinstance(ids, slice) else ids
        if self.count < 2**31:
            flat = flat.astype(np.int32)  # divides faster
        row, col = np.divmod(flat, flat.dtype.type(width))
        np.multiply(self.rows.index[row], np.int32(self.src_width), out=index)
        index += self.cols.index[col]
        query[:, 0] = self.rows.local[row]
        query[:, 1] = self.cols.local[col]
        query[:, 2] = self.ratio

    def in_rows(self, top: int, bottom: int) -> slice:
        first, last = np.searchsorted(self.rows.index, [top, bottom])
        return slice(int(first) * self.shape[1], int(last) * self.shape[1])


class MapQueries(Queries):
    """Any set of positions."""

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


def resize(src_size: tuple[int, int], dsize: tuple[int, int]) -> RegularQueries:
    """The whole frame of ``src_size`` (width, height) at ``dsize`` (width, height)."""
    return roi(src_size, (0, 0, *src_size), dsize)


def roi(src_size: tuple[int, int], rect: tuple[float, float, float, float], dsize: tuple[int, int]) -> RegularQueries:
    """A rectangle (x, y, width, height) in LR pixels, any real values inside the frame, at ``dsize``.

    Pixel j of the frame covers [j, j + 1): the whole frame is (0, 0, width, height).

    Raises InputError when the rectangle is empty, not finite or not inside the frame.
    """
    check_rect(src_size, rect)
    x, y, w, h = rect
    return RegularQueries(axis(src_size[1], dsize[1], y, h), axis(src_size[0], dsize[0], x, w), src_size[0])


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

    map_x, map_y: float maps [h, w] of LR positions in pixels, pixel centres at whole numbers; or one
        map [h, w, 2] of (x, y) and None; or OpenCV's fixed-point pair (int16 [h, w, 2] and
        uint16 [h, w], steps of 1/32 pixel), whose area ratio is smoothed over those steps.
    replicate: positions outside the frame take its nearest edge; otherwise they are ``outside``.
    ratio_range: what the area ratio |det J| (LR px² per output px, J by central differences,
        one-sided at edges and jumps) is clamped to.
    """
    width, height = src_size
    x, y, fixed_point = _float_maps(map_x, map_y)
    ratio = _area_ratio(x, y)
    if fixed_point:
        ratio = _box_mean(ratio, radius=4)
    finest, coarsest = max(float(ratio.min()), 1e-12), max(float(ratio.max()), 1e-12)
    within = (x >= -0.5) & (x <= width - 0.5) & (y >= -0.5) & (y <= height - 0.5)
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


def _float_maps(
    map_x: npt.NDArray[np.generic], map_y: npt.NDArray[np.generic] | None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], bool]:
    """Both maps as float64 [h, w], and whether they came in OpenCV's fixed-point form."""
    pair = map_x.ndim == 3 and map_x.shape[-1] == 2
    fits = map_y is None or map_y.size == 0 or map_y.shape == map_x.shape[:2]
    if pair and map_x.dtype == np.int16 and map_x.size and fits:
        fraction = np.zeros(map_x.shape[:2], np.int32)
        if map_y is not None and map_y.size:
            fraction = map_y.astype(np.int32)
        whole = map_x.astype(np.float64)
        x = whole[..., 0] + (fraction & 31) / 32
        y = whole[..., 1] + (fraction >> 5 & 31) / 32
        return x, y, True
    if pair and (map_y is None or map_y.size == 0):
        map_x, map_y = map_x[..., 0], map_x[..., 1]
    if map_y is None or map_x.shape != map_y.shape or map_x.ndim != 2 or not map_x.size:
        found = f"{map_x.dtype}{list(map_x.shape)}"
        other = "none" if map_y is None else f"{map_y.dtype}{list(map_y.shape)}"
        raise InputError(
            f"remap takes two float maps of one shape [h, w], one of [h, w, 2], or OpenCV's "
            f"fixed-point pair; got {found} and {other}"
        )
    if not (map_x.dtype.kind == "f" and map_y.dtype.kind == "f"):
        raise InputError(f"remap takes floating-point maps, got {map_x.dtype} and {map_y.dtype}")
    return map_x.astype(np.float64), map_y.astype(np.float64), False


def _area_ratio(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """|det J| of the map, LR px² per output px, [h, w]; 1 where it cannot be told."""
    with np.errstate(invalid="ignore", over="ignore"):  # maps may hold infinities where they leave the frame
        dx_du, dy_du = _derivative(x, y, 1)
        dx_dv, dy_dv = _derivative(x, y, 0)
        det = np.abs(dx_du * dy_dv - dx_dv * dy_du)
    return np.where(np.isfinite(det), det, 1.0)


def _derivative(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], along: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(dx, dy) per output pixel: the mean of the steps before and after, or the calmer of the two
    where there is but one, where one is not finite, or where one is a jump (over four times the
    other, and by more than a pixel)."""
    if x.shape[along] == 1:  # one pixel across: assume the map does not scale along this axis
        one, none = np.ones_like(x), np.zeros_like(x)
        return (one, none) if along == 1 else (none, one)
    steps = []
    for field in (x, y):
        step = np.diff(field, axis=along)
        edge = np.full_like(np.take(field, [0], axis=along), np.nan)
        steps.append((np.concatenate([edge, step], along), np.concatenate([step, edge], along)))
    (x_before, x_after), (y_before, y_after) = steps
    before, after = np.hypot(x_before, y_before), np.hypot(x_after, y_after)
    use_after = ~np.isfinite(before) | (before > 4 * after + 1)
    use_before = ~np.isfinite(after) | (after > 4 * before + 1)

    def pick(b: npt.NDArray[np.float64], a: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.where(use_after, a, np.where(use_before, b, (a + b) / 2))

    return pick(x_before, x_after), pick(y_before, y_after)


def _box_mean(values: npt.NDArray[np.float64], radius: int) -> npt.NDArray[np.float64]:
    """Mean over a square of 2·radius + 1 pixels, cut off at the edges of ``values`` [h, w]."""
    for along in (0, 1):
        n = values.shape[along]
        total = np.concatenate([np.zeros_like(np.take(values, [0], along)), values.cumsum(along)], along)
        low = np.maximum(np.arange(n) - radius, 0)
        high = np.minimum(np.arange(n) + radius + 1, n)
        shape = [1, 1]
        shape[along] = n
        values = (np.take(total, high, along) - np.take(total, low, along)) / (high - low).reshape(shape)
    return values
