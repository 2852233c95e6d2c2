"""From messages of ROS to frames: images of each encoding, stamps and calibrations, of a topic or of a bag alike.

A message is an object with the fields that ROS gives its type, whether rclpy or rosbags made it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import InputError, SourceError, unknown
from diinn.runtime.geometry.calibration import Calibration
from diinn.runtime.images import files as image_files
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.sources.pixel_formats import BAYER, to_bgr
from diinn.runtime.util.once import Once
from diinn.runtime.util.opencv import cv2

log = logging.getLogger(__name__)
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INFO = "sensor_msgs/msg/CameraInfo"
IMAGES = (IMAGE, COMPRESSED)
TRANSPORTS = ("/compressed",)  # what image_transport appends to the topic of an image
NANO = 10**9
TOPIC = re.compile(r"(/[A-Za-z_][A-Za-z0-9_]*)+")  # the whole name of one
# By name: channels, and OpenCV's conversion to BGR where it is not one of ``to_bgr``'s.
ENCODINGS: dict[str, tuple[int, int | None]] = {
    "rgb8": (3, cv2.COLOR_RGB2BGR),
    "bgr8": (3, None),
    "8UC3": (3, None),
    "rgba8": (4, cv2.COLOR_RGBA2BGR),
    "bgra8": (4, None),
    "mono8": (1, None),
    "8UC1": (1, None),
    "rgb16": (3, cv2.COLOR_RGB2BGR),
    "bgr16": (3, None),
    "rgba16": (4, cv2.COLOR_RGBA2BGR),
    "bgra16": (4, None),
    "mono16": (1, None),
    "yuv422": (2, cv2.COLOR_YUV2BGR_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2BGR_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2BGR_YUY2),
    **{f"bayer_{name.removeprefix('bayer-')}{bits}": (1, code) for name, code in BAYER.items() for bits in (8, 16)},
}
PAIRED = ("yuv422", "uyvy", "yuv422_yuy2", "yuyv")  # two pixels share their colour


class EncodingError(SourceError):
    """No image of this topic can be taken, whichever comes."""


def stamp(message: Any) -> int:
    """When a message's content was captured, nanoseconds."""
    time = message.header.stamp
    return int(time.sec) * NANO + int(time.nanosec)


def image(message: Any, kind: str) -> UInt8:
    """The image of a message of type ``kind``, uint8 [H, W, 3] BGR.

    Of 16 bits the upper 8 are taken, alpha is dropped. EncodingError for an encoding that is not known, SourceError for
    an image that is damaged.
    """
    if kind == COMPRESSED:
        return _compressed(message)
    encoding = str(message.encoding)
    if encoding not in ENCODINGS:
        raise EncodingError(
            f"sends images with an {unknown('encoding', encoding, ENCODINGS)}; image_proc converts them"
        )
    channels, conversion = ENCODINGS[encoding]
    width, height = int(message.width), int(message.height)
    if not (width and height):
        raise SourceError(f"its image is {width}x{height} pixels: there is nothing to see")
    if encoding in PAIRED and width % 2:
        raise EncodingError(f"sends {encoding} images with an odd width of {width}: crop them to an even one")
    deep = encoding.endswith("16")
    pixels = _rows(message, width * channels * (2 if deep else 1), height)
    if deep:
        pixels = pixels.view(">u2" if message.is_bigendian else "<u2").astype(np.uint16)
    found = pixels.reshape((height, width, channels) if channels > 1 else (height, width))
    if conversion is not None:
        try:
            found = np.asarray(cv2.cvtColor(found, conversion))
        except cv2.error as error:
            raise EncodingError(f"sends {width}x{height} {encoding} images, which OpenCV cannot convert") from error
    return to_bgr(found, None)


def _rows(message: Any, length: int, height: int) -> npt.NDArray[Any]:
    """The bytes [height, length] of an image without what pads its rows."""
    data = np.frombuffer(message.data, np.uint8)
    step = int(message.step) or length
    if step < length:
        raise SourceError(f"its rows have {step} bytes where {length} are wanted: its step or encoding is wrong")
    if data.size < step * (height - 1) + length:
        raise SourceError(f"its image has {data.size} bytes where {step * height} are wanted: it is cut short")
    if data.size < step * height:
        data = np.concatenate([data, np.zeros(step * height - data.size, np.uint8)])
    return np.ascontiguousarray(data[: step * height].reshape(height, step)[:, :length])


def _compressed(message: Any) -> UInt8:
    """Of image_transport's ``compressed``: a JPEG or PNG.

    Its format is ``jpeg``, or ``bgr8; jpeg compressed bgr8`` with the encodings before and after.
    """
    form = str(message.format).strip()
    before, _, after = form.partition(";")
    words = after.split()
    if "compressedDepth" in form:
        raise EncodingError(f"sends depth ({form!r}), which is no picture: give the topic of an image")
    if before.startswith("bayer") and (len(words) < 3 or words[2].startswith(("bayer", "mono"))):
        raise EncodingError(f"sends compressed raw images ({form!r}): give the topic of the images themselves")
    return image_files.decode_bgr(bytes(message.data), f"its compressed image ({form or 'of no format'})")


def info_topic(topic: str) -> str:
    """The topic of the ``camera_info`` beside an image's: its sibling, as image_transport has it."""
    return f"{base_topic(topic).rpartition('/')[0]}/camera_info"


def base_topic(topic: str) -> str:
    """An image's topic without what its transport appends."""
    return next((topic.removesuffix(end) for end in TRANSPORTS if topic.endswith(end)), topic)


def info_fields(message: Any) -> dict[str, Any]:
    """What a ``CameraInfo`` says of the camera, as plain JSON values by the names of ROS 2."""
    roi = message.roi
    return {
        "width": int(message.width),
        "height": int(message.height),
        "distortion_model": str(message.distortion_model),
        **{key: [float(v) for v in _either(message, key)] for key in ("d", "k", "r", "p")},
        "binning_x": int(message.binning_x),
        "binning_y": int(message.binning_y),
        "roi": {key: int(getattr(roi, key)) for key in ("x_offset", "y_offset", "width", "height")},
    }


def _either(message: Any, key: str) -> Any:
    """A field that is in capitals in ROS 1."""
    return getattr(message, key) if hasattr(message, key) else getattr(message, key.upper())


class Calibrations:
    """The calibration of a camera by its ``camera_info``, which may change; the same object while it does not.

    latest: None before the first, and while the camera is not calibrated
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._fields: Mapping[str, Any] | None = None
        self._logged = Once()
        self.latest: Calibration | None = None

    def take(self, fields: Mapping[str, Any]) -> None:
        """Take the values of a message, as ``info_fields`` gives them. What is wrong with them is logged once."""
        if fields == self._fields:
            return
        self._fields, self.latest = fields, None
        if not any(fields["k"]):  # ROS's way to say that the camera is not calibrated
            return
        try:
            self.latest = Calibration.of_message(self._topic, fields)
        except InputError as error:
            if self._logged.first(str(error)):
                log.warning("%s; it is not used", error)
