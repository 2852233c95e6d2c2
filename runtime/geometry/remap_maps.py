"""Maps as ``cv2.remap`` takes them: the positions they hold and how densely they sample the frame."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import InputError


def positions(
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


def area_ratio(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """|det J| of the map, LR px² per output px, [h, w]; 1 where it is not known."""
    with np.errstate(invalid="ignore", over="ignore"):  # maps may hold infinities where they leave the frame
        dx_du, dy_du = _derivative(x, y, 1)
        dx_dv, dy_dv = _derivative(x, y, 0)
        det = np.abs(dx_du * dy_dv - dx_dv * dy_du)
    return np.where(np.isfinite(det), det, 1.0)


def _derivative(
    x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], along: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(dx, dy) per output pixel, by central differences where both neighbours are usable.

    That is the mean of the steps before and after; one of them alone at edges, where the other is not finite, or where
    the other is a jump (over four times as long, and by more than a pixel).
    """
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


def box_mean(values: npt.NDArray[np.float64], radius: int) -> npt.NDArray[np.float64]:
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
