"""OpenCV, whatever build a robot has: imported here first, rejected in one line if unusable, and given safe names.

OpenCV takes names as UTF-8 and ends the process for one that is not; FFmpeg, behind it, takes the part before a
colon for a protocol. Whatever OpenCV opens by name is opened here (``tests/test_house.py``).
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from diinn.runtime.errors import InputError, SourceError
from diinn.runtime.util.file_names import as_utf8

try:
    with contextlib.redirect_stderr(io.StringIO()):  # NumPy 2 prints a page about what was built for NumPy 1
        import cv2
except ImportError as error:
    if "numpy" not in str(error).lower():
        raise
    raise InputError(
        f"this OpenCV was built for another NumPy than {np.__version__}: pip install 'numpy<2', or a later OpenCV"
    ) from None

__all__ = ["check_version", "cv2"]
OLDEST = (4, 5, 4)  # Ubuntu 22.04's; Debian 12 and Ubuntu 24.04 have 4.6
DESCRIPTORS = Path("/proc/self/fd")
# What FFmpeg's encoders take: pixels along a side, and in all with a margin, as its av_image_check_size counts them.
LARGEST_SIDE = {"mp4v": 8190, "MJPG": 65500}
LARGEST_AREA = 2**28


def check_version(version: str) -> None:
    """InputError for an OpenCV older than ``OLDEST``."""
    found = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if found < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise InputError(f"OpenCV {version} is too old, {wanted} or later is wanted: pip install opencv-python")


check_version(cv2.__version__)


@contextlib.contextmanager
def named(path: Path) -> Iterator[str]:
    """A file to read, as OpenCV takes it, for as long as OpenCV opens it. OSError where it cannot be opened."""
    text = as_utf8(str(path.absolute()))
    if text is not None:
        yield text
        return
    with path.open("rb") as file:
        yield _descriptor(file.fileno(), path)


@contextlib.contextmanager
def named_anew(path: Path) -> Iterator[str]:
    """A file to write, whose own name is ASCII, as ``named``; its folder may have any name."""
    text = as_utf8(str(path.absolute()))
    if text is not None:
        yield text
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield f"{_descriptor(folder, path)}/{path.name}"
    finally:
        os.close(folder)


def _descriptor(number: int, path: Path) -> str:
    if not DESCRIPTORS.is_dir():
        raise InputError(f"OpenCV cannot take the name {str(path)!r}, which is no UTF-8: rename it")
    return f"{DESCRIPTORS}/{number}"


def open_video(path: Path) -> cv2.VideoCapture:
    """A video file, open or not."""
    with named(path) as name:
        return cv2.VideoCapture(name)


def open_camera(address: int | str, api: int, parameters: Sequence[int]) -> cv2.VideoCapture:
    """A device, network stream or pipeline, open or not; SourceError for an address that is no text."""
    if isinstance(address, str):
        text = as_utf8(address)
        if text is None:
            raise SourceError("cannot be opened, its address is no UTF-8: write what is not ASCII as %XX")
        address = text
    return cv2.VideoCapture(address, api, parameters)


def open_writer(path: Path, codec: str, rate: float, size: tuple[int, int]) -> cv2.VideoWriter:
    """A video file to write, open or not; codec: four letters of ``LARGEST_SIDE``."""
    width, height = size
    if max(size) > LARGEST_SIDE[codec] or (width + 128) * (height + 128) >= LARGEST_AREA:
        return cv2.VideoWriter()  # OpenCV before 4.6 ends the process here
    with named_anew(path) as name:
        return cv2.VideoWriter(name, cv2.VideoWriter.fourcc(*codec), rate, size)


def has_image_reader(path: Path) -> bool:
    """Whether one of OpenCV's image decoders is for a file, by its first bytes. OSError where it cannot be read."""
    with named(path) as name:
        return bool(cv2.haveImageReader(name))


def count_packets(path: Path, seconds: float) -> int | None:
    """How many packets of its picture a video file holds, none of them decoded.

    None where counting takes more than ``seconds``, or is not possible.
    """
    with named(path) as name:
        capture = cv2.VideoCapture(name, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
    until, count = time.monotonic() + seconds, 0
    while capture.grab():
        count += 1
        if time.monotonic() > until:
            return None
    return count or None
