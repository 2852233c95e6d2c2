"""Bags for the tests, written by rosbags: drives of one camera, of each format, and messages to put into others."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from diinn.benchmarks.mjpeg_server import burn
from diinn.runtime.sources import demo

pytest.importorskip("rosbags", reason="bags need rosbags: pip install 'diinn[bag]'")

from rosbags import rosbag1, rosbag2
from rosbags.typesys import Stores, get_typestore

BEGIN, STEP = 1_700_000_000_123_456_789, 100_000_000  # nanoseconds
LATE = 5_000_000  # from a stamp to its recording
IMAGE, COMPRESSED, INFO = (f"sensor_msgs/msg/{kind}" for kind in ("Image", "CompressedImage", "CameraInfo"))
TEXT = "std_msgs/msg/String"
SIZE = (160, 120)
K = [150.0, 0, 79, 0, 152, 61, 0, 0, 1]
D = [-0.2, 0.05, 0.001, 0, 0]


def stamp(number: int) -> int:
    return BEGIN + number * STEP


class Messages:
    """Makes messages of ROS 1 or 2, and their bytes."""

    def __init__(self, *, ros1: bool = False) -> None:
        self.ros1 = ros1
        self.store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_JAZZY)

    def make(self, kind: str, **values: Any) -> Any:
        return self.store.types[kind](**values)

    def header(self, at: int, frame_id: str = "front_optical") -> Any:
        time = self.make("builtin_interfaces/msg/Time", sec=at // 10**9, nanosec=at % 10**9)
        return self.make("std_msgs/msg/Header", **({"seq": 0} if self.ros1 else {}), stamp=time, frame_id=frame_id)

    def image(self, at: int, pixels: np.ndarray, encoding: str = "bgr8", step: int = 0, big: bool = False) -> bytes:
        """Of rows [H, bytes a row], padded to ``step`` bytes; ``pixels``: [H, W, ...] of uint8 or uint16."""
        height, width = pixels.shape[:2]
        rows = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<")).reshape(height, -1).view(np.uint8)
        padded = np.full((height, step or rows.shape[1]), 77, np.uint8)
        padded[:, : rows.shape[1]] = rows
        values = {"height": height, "width": width, "encoding": encoding, "is_bigendian": int(big)}
        return self.bytes(IMAGE, header=self.header(at), **values, step=padded.shape[1], data=padded.reshape(-1))

    def compressed(self, at: int, data: bytes, form: str = "jpeg") -> bytes:
        return self.bytes(COMPRESSED, header=self.header(at), format=form, data=np.frombuffer(data, np.uint8))

    def info(self, at: int, size: tuple[int, int] = SIZE, k: Sequence[float] = K, d: Sequence[float] = D) -> bytes:
        region = self.make(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        matrices = {"d": d, "k": k, "r": np.eye(3).ravel(), "p": [*k[:3], 0, *k[3:6], 0, *k[6:], 0]}
        named = {name.upper() if self.ros1 else name: np.array(values, float) for name, values in matrices.items()}
        values = {"height": size[1], "width": size[0], "distortion_model": "plumb_bob"}
        return self.bytes(INFO, header=self.header(at), **values, **named, binning_x=0, binning_y=0, roi=region)

    def text(self, words: str) -> bytes:
        return self.bytes(TEXT, data=words)

    def bytes(self, kind: str, **values: Any) -> bytes:
        message = self.make(kind, **values)
        serialize = self.store.serialize_ros1 if self.ros1 else self.store.serialize_cdr
        return bytes(serialize(message, kind))


Written = tuple[str, str, int, bytes]  # topic, type, time of recording, content


def write(path: Path, messages: Sequence[Written], *, zstd: str = "") -> Path:
    """A bag: ``x.bag`` of ROS 1, ``x.mcap`` the file alone, ``x.db3`` likewise, otherwise a folder.

    zstd: "file" or "message" in a database's folder, "storage" in an MCAP's; of ROS 1 "bz2" or "lz4" instead
    """
    ros1 = path.suffix == ".bag"
    store = Messages(ros1=ros1).store
    if ros1:
        writer: Any = rosbag1.Writer(path)
        if zstd:
            writer.set_compression(rosbag1.Writer.CompressionFormat[zstd.upper()])
    else:
        folder = path.with_suffix("") if path.suffix else path
        plugin = rosbag2.StoragePlugin.SQLITE3 if path.suffix == ".db3" or "sqlite" in path.name else None
        writer = rosbag2.Writer(folder, version=9, storage_plugin=plugin or rosbag2.StoragePlugin.MCAP)
        if zstd:
            writer.set_compression(rosbag2.CompressionMode[zstd.upper()], rosbag2.CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, kind, at, data in messages:
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=store)
            writer.write(connections[topic], at, data)
    if not ros1 and path.suffix:
        (folder / path.name).replace(path)
        shutil.rmtree(folder)
    return path


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture that bears its number."""
    picture = demo.frame(number / 10, size)
    burn(picture, number)
    return picture


def drive(
    frames: int = 12, topic: str = "/front/image_raw", *, ros1: bool = False, info: bool = True, first: int = 0
) -> list[Written]:
    """A camera's messages with numbers in their pictures, its ``camera_info`` and some words beside them."""
    made = Messages(ros1=ros1)
    found: list[Written] = []
    for number in range(first, first + frames):
        at = stamp(number)
        found.append((topic, IMAGE, at + LATE, made.image(at, numbered(number))))
        if info:
            found.append((topic.rpartition("/")[0] + "/camera_info", INFO, at + LATE + 1, made.info(at)))
        found.append(("/words", TEXT, at + LATE + 2, made.text(f"word {number}")))
    return found


def jpegs(frames: int, topic: str) -> list[Written]:
    made = Messages()
    encode: Callable[[int], bytes] = lambda number: cv2.imencode(".jpg", numbered(number))[1].tobytes()  # noqa: E731
    return [(topic, COMPRESSED, stamp(n) + LATE, made.compressed(stamp(n), encode(n))) for n in range(frames)]
