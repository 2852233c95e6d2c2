"""From what cameras deliver to what the networks take: uint8 BGR, upright."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import SourceError
from diinn.runtime.geometry.grid import Size
from diinn.runtime.images.arrays import UInt8

# name for --input-codec: V4L2's FOURCC
CODECS = {
    "mjpeg": "MJPG",
    "h264": "H264",
    "h265": "HEVC",
    "yuyv": "YUYV",
    "grey": "GREY",
    "bayer-bggr": "BA81",
    "bayer-gbrg": "GBRG",
    "bayer-grbg": "GRBG",
    "bayer-rggb": "RGGB",
}
# OpenCV's older names, which all versions know: they name the second and third pixel of the second row.
BAYER = {
    "bayer-bggr": cv2.COLOR_BayerRG2BGR,
    "bayer-gbrg": cv2.COLOR_BayerGR2BGR,
    "bayer-grbg": cv2.COLOR_BayerGB2BGR,
    "bayer-rggb": cv2.COLOR_BayerBG2BGR,
}
FLIPS: dict[str, Callable[[UInt8], Any]] = {
    "horizontal": lambda image: cv2.flip(image, 1),
    "vertical": lambda image: cv2.flip(image, 0),
    "rotate-180": lambda image: cv2.rotate(image, cv2.ROTATE_180),
    "clockwise": lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    "counterclockwise": lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}


def folded(image: npt.NDArray[Any], size: Size) -> npt.NDArray[Any]:
    """A raw frame of ``size`` (width, height) that came as one row of bytes, as V4L2's do: [H, W].

    Any other is returned unchanged. SourceError where the row has another length.
    """
    if image is None or image.shape[0] != 1 or size[1] == 1:
        return image
    if image.size != size[0] * size[1]:
        raise SourceError(
            f"its raw frames have {image.size} bytes, not {size[0]}x{size[1]}: ask for another --input-codec"
        )
    return image.reshape(size[1], size[0])


def to_bgr(image: npt.NDArray[Any] | None, codec: str | None) -> UInt8:
    """A camera's frame as uint8 [H, W, 3] BGR.

    Grey, Bayer (``codec`` names the pattern) and YUYV are converted, of 16 bits the upper 8 are taken, alpha is
    dropped. SourceError names anything else.
    """
    if image is None or not isinstance(image, np.ndarray) or not image.size:
        raise SourceError("it delivers empty frames")
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3):
        raise SourceError(f"its frames are {image.dtype}{list(image.shape)}: ask it for 8-bit BGR or grey")
    if image.ndim == 2:
        image = np.asarray(cv2.cvtColor(image, BAYER.get(codec or "", cv2.COLOR_GRAY2BGR)))
    elif image.shape[2] == 2 and image.dtype == np.uint8:
        image = np.asarray(cv2.cvtColor(image, cv2.COLOR_YUV2BGR_YUY2))
    elif image.shape[2] == 4:
        image = image[..., :3]
    if image.shape[2] != 3:
        raise SourceError(f"its frames have {image.shape[2]} channels: ask it for 8-bit BGR or grey")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    return np.ascontiguousarray(image)
