"""From results to messages of ROS: what an image and the ``camera_info`` beside it hold, and what topics are called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.geometry.calibration_file import Float64
from diinn.runtime.geometry.view_camera import ViewCamera, of_view, quaternion
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.sources import Source
from diinn.runtime.sources.base import Frame
from diinn.runtime.sources.ros_messages import NANO, TOPIC, base_topic
from diinn.runtime.stream.result import Result
from diinn.runtime.util.opencv import cv2

RAW, JPEG, PNG = "raw", "jpeg", "png"
FORMATS = (RAW, JPEG, PNG)
QUALITY = 95  # of JPEGs
RESULTS = "sr"  # what the topics of results are below, where none is named


@dataclass(frozen=True)
class Outgoing:
    """What is to be sent of a result.

    stamp: nanoseconds; frame_id: of image and camera_info; parent: the frame of the camera, where the view turns it
    recorded: when a bag is to say that it came, nanoseconds
    """

    stamp: int
    frame_id: str
    parent: str
    recorded: int
    camera: ViewCamera

    @property
    def turn(self) -> Float64 | None:
        """From the axes of ``parent`` to those of ``frame_id``."""
        return self.camera.turn


def outgoing(result: Result) -> Outgoing:
    """Stamp, frames and camera of a result; of a camera that is none of ROS the time of capture and its name."""
    frame = result.frame
    stamp, parent, recorded = origin(frame)
    camera = of_view(result.view_geometry, frame.size, result.calibration)
    frame_id = parent if camera.turn is None else f"{parent}_{token(result.view)}"
    return Outgoing(stamp, frame_id, parent, recorded, camera)


class Turns:
    """How views are turned against their cameras.

    known: by the view's frame: the camera's, and the rotation
    """

    def __init__(self) -> None:
        self.known: dict[str, tuple[str, Float64]] = {}

    def add(self, made: Outgoing) -> bool:
        """Note a result's; whether it is new, or another than before."""
        if made.turn is None:
            return False
        known = self.known.get(made.frame_id)
        if known is not None and known[0] == made.parent and (known[1] == made.turn).all():
            return False
        self.known[made.frame_id] = made.parent, made.turn
        return True


def origin(frame: Frame) -> tuple[int, str, int]:
    """A frame's stamp, frame id and time of recording, nanoseconds."""
    if frame.header is None:
        stamp = round(frame.captured * NANO)
        return stamp, token(frame.source), stamp
    return frame.header.stamp, frame.header.frame_id, frame.header.recorded or frame.header.stamp


def encoded(image: UInt8, form: str, quality: int = QUALITY) -> bytes:
    """An image as JPEG or PNG."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality] if form == JPEG else [cv2.IMWRITE_PNG_COMPRESSION, 1]
    try:
        done, data = cv2.imencode(f".{form}", image, options)
    except cv2.error as error:
        done, data = False, np.zeros(0, np.uint8)
        raise DiinnError(_not_encoded(image, form)) from error
    if not done:
        raise DiinnError(_not_encoded(image, form))
    return data.tobytes()


def _not_encoded(image: UInt8, form: str) -> str:
    return f"a {image.shape[1]}x{image.shape[0]} view cannot be written as {form}: make it smaller, or use ?format=raw"


def token(name: str) -> str:
    """A name as a part of a topic's may be: letters, digits and _, no digit first."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_") or "camera"
    return plain if not plain[0].isdigit() else f"_{plain}"


def check_topic(topic: str, what: str) -> str:
    """A topic's whole name, beginning with a slash; InputError where it is none."""
    name = "/" + topic.strip("/")
    if not TOPIC.fullmatch(name):
        raise InputError(f"{what}: {topic!r} is no name of a topic: use letters, digits, _ and /, such as /front/sr")
    return name


def base_topics(views: Sequence[tuple[Source, Sequence[str]]], base: str | None) -> dict[tuple[str, str], str]:
    """What the topics of each stream, (camera, view), are below: its ``image`` and its ``camera_info``.

    base: what all are below; None for ``sr`` beside each source's own topic
    """
    found: dict[tuple[str, str], str] = {}
    for source, names in views:
        below = base or _beside(source)
        if base is not None and len(views) > 1:
            below = f"{base}/{token(source.name)}"
        for view in names:
            wanted = name = f"{below}/{token(view)}" if len(names) > 1 else below
            number = 1
            while name in found.values():
                number += 1
                name = f"{wanted}_{number}"
            found[source.name, view] = name
    return found


def _beside(source: Source) -> str:
    if not source.topic:
        return f"/{token(source.name)}/{RESULTS}"
    return f"{base_topic(source.topic).rpartition('/')[0]}/{RESULTS}"


def quality(text: str, where: str) -> int:
    """A quality of JPEGs."""
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= 100):
        raise InputError(f"{where}: quality {text!r} is not a whole number from 1 to 100")
    return int(text)


def pose(turn: Float64) -> tuple[float, float, float, float]:
    """The quaternion (x, y, z, w) of a view's axes in those of its camera, as a transform has it."""
    return quaternion(turn.T)


def info_values(camera: ViewCamera) -> dict[str, Any]:
    """The fields of a ``camera_info`` but its header and its roi, which is none."""
    return {
        "height": camera.size[1],
        "width": camera.size[0],
        "distortion_model": camera.model,
        "d": camera.d.ravel(),
        "k": camera.k.ravel(),
        "r": camera.r.ravel(),
        "p": camera.p.ravel(),
        "binning_x": 0,
        "binning_y": 0,
    }
