"""The same views without a network: for comparison, and what a deadline falls back to."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from diinn.runtime.geometry.view import View
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.util import memory


def bicubic(frame: UInt8, view: View) -> UInt8:
    """``view`` of ``frame``, uint8 BGR [H, W, 3], by OpenCV's bicubic interpolation: uint8 [h, w, 3].

    Raises InputError where there is no memory for it.
    """
    memory.require(view.dsize[0] * view.dsize[1] * 3, f"a {view.dsize[0]}x{view.dsize[1]} output")
    if view.maps is not None:
        border = cv2.BORDER_REPLICATE if view.replicate else cv2.BORDER_CONSTANT
        value = [round(255 * view.border_value)] * 3
        first: Any = view.maps[0]
        second: Any = view.maps[1]
        return np.asarray(
            cv2.remap(frame, first, second, cv2.INTER_CUBIC, borderMode=border, borderValue=value), np.uint8
        )
    height, width = frame.shape[:2]
    x, y, w, h = view.rect or (0.0, 0.0, width, height)
    across, down = w / view.dsize[0], h / view.dsize[1]
    if view.rect is None and max(across, down) > 1:
        return np.asarray(cv2.resize(frame, view.dsize, interpolation=cv2.INTER_AREA), np.uint8)
    back = np.array([[across, 0, x + across / 2 - 0.5], [0, down, y + down / 2 - 0.5]])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(frame, back, view.dsize, flags=flags, borderMode=cv2.BORDER_REPLICATE), np.uint8)
