"""Image files: read whole or refused, written whole or not at all."""

from __future__ import annotations

import itertools
import logging
import os
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import DiinnError, InputError, SourceError
from diinn.runtime.opencv import cv2

log = logging.getLogger(__name__)
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
UInt8 = npt.NDArray[np.uint8]
_NUMBERS = itertools.count()
_PNG = b"\x89PNG\r\n\x1a\n"


def find(folder: Path) -> list[Path]:
    """Every image file below ``folder``, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)


def read_bgr(path: Path) -> UInt8:
    """An image file as uint8 [H, W, 3] BGR; grey becomes BGR, 16 bits become 8, transparency is dropped
    (said once per file). Raises SourceError for one that is missing, empty, cut short or no image."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SourceError(f"no file {str(path)!r}: check the path") from None
    except OSError as error:
        raise SourceError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if not data:
        raise SourceError(f"{str(path)!r} is empty: replace it")
    if _cut_short(data):
        raise SourceError(f"{str(path)!r} is cut short or damaged: copy it again")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise SourceError(f"{str(path)!r} cannot be decoded ({error.err}): use a smaller or another image") from None
    if image is None:
        raise SourceError(f"{str(path)!r} is not an image OpenCV can decode: convert it to PNG")
    if data.startswith(_PNG) and data[25] in (4, 6):
        _warn_once(f"{path}: transparency is dropped")
    if data.startswith(_PNG) and data[24] == 16:
        _warn_once(f"{path}: 16 bits become 8")
    return image.astype(np.uint8, copy=False)


@cache
def _warn_once(message: str) -> None:
    log.warning(message)


def write(path: Path, image: UInt8) -> None:
    """Write uint8 BGR [H, W, 3] in the format of the ending; a file appears whole or not at all."""
    try:
        done, data = cv2.imencode(path.suffix or ".png", image)
    except cv2.error as error:
        raise InputError(f"cannot encode {image.shape[1]}x{image.shape[0]} as {path.suffix!r}: {error.err}") from None
    if not done:
        raise InputError(f"OpenCV cannot write {path.suffix!r} images: use .png or .jpg")
    partial = beside(path)
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(path)
    except OSError as error:
        raise DiinnError(f"cannot write {str(path)!r}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def beside(path: Path, ending: str = "") -> Path:
    """Where to write what is to become ``path``: in its folder, under a name of ASCII, short enough for any system, and
    used once."""
    return path.with_name(f".diinn-{os.getpid()}-{next(_NUMBERS)}.partial{ending}")


def _cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end or a PNG chunk is damaged; decoders fill in and say nothing."""
    if data.startswith(_PNG):
        return _png_damaged(data)
    if not data.startswith(b"\xff\xd8"):
        return False
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:  # the scan starts: its end marker must follow
            return data.find(b"\xff\xd9", at) < 0
        at += 2 + length
    return True


def _png_damaged(data: bytes) -> bool:
    at = len(_PNG)
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return True
        if data[at + 4 : at + 8] == b"IEND":
            return False
        at = end + 4
    return True
