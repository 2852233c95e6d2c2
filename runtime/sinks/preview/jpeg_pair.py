"""A result as browsers get it: JPEGs of ours and of bicubic, made once and only if a viewer is open."""

from __future__ import annotations

import threading

import cv2
import numpy as np
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry.bicubic import bicubic
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.stream.result import Result

LARGEST = (1920, 1080)  # that a pane is sent; a still has the whole size
QUALITY = 88


class JpegPair:
    """One result; ``jpegs`` may be called from any thread."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self._jpegs: dict[bool, bytes] = {}
        self._lock = threading.Lock()

    def jpegs(self, compare: bool) -> list[bytes]:
        """The view, and with ``compare`` the bicubic view of the same frame behind it."""
        with self._lock:
            return [self._jpeg(False), *([self._jpeg(True)] if compare else [])]

    def _jpeg(self, plain: bool) -> bytes:
        if plain not in self._jpegs:
            result = self.result
            image = bicubic(result.frame.image, result.view_geometry) if plain else result.image
            self._jpegs[plain] = encoded(".jpg", _reduced(image), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        return self._jpegs[plain]


def _reduced(image: UInt8) -> UInt8:
    height, width = image.shape[:2]
    factor = min(1.0, LARGEST[0] / width, LARGEST[1] / height)
    if factor == 1:
        return image
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)


def encoded(suffix: str, image: UInt8, options: list[int] | None = None) -> bytes:
    """An image file in memory."""
    done, data = cv2.imencode(suffix, image, options or [])
    if not done:
        raise DiinnError(f"OpenCV cannot write {suffix} images")
    return data.tobytes()
