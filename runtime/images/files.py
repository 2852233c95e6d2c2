"""Image files: read whole or refused, written whole or not at all."""

from __future__ import annotations

import itertools
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import DiinnError, InputError, SourceError
from diinn.runtime.images import headers
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.util import opencv
from diinn.runtime.util.once import Once
from diinn.runtime.util.opencv import cv2

log = logging.getLogger(__name__)
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})
MOST_BYTES = 2**31
WRITTEN_AS = {".jfif": ".jpg", ".mpo": ".jpg"}  # endings of formats that OpenCV knows by another
LONGEST_SIDE = {".jpg": 65500, ".jpeg": 65500, ".jpe": 65500, ".webp": 16383}  # pixels
FILMS = (".mjpeg", ".mjpg")  # whose first bytes are those of an image
MISREAD = (b"P7\n", b"PF\n", b"Pf\n")  # PAM, red taken for blue, and PFM, floating-point values cut to 0 and 1
NOT_WRITTEN = (".gif", ".pam", ".pfm")  # too few colours, or the wrong ones
RAWS = (".dng", ".nef", ".nrw", ".cr2", ".arw", ".sr2", ".pef", ".orf", ".rw2", ".srw", ".raw")  # whose first is small
_LOGGED = Once()
_NUMBERS = itertools.count()


def is_image(path: Path) -> bool:
    """Whether a file is for OpenCV's image decoders, by its first bytes, whatever its name.

    A film is not, even one of JPEGs or an animated GIF.
    """
    if path.suffix.lower() in FILMS + RAWS:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(16)
        if head[:6] in headers.GIFS:
            return not _animated(path)
        return bool(head) and opencv.has_image_reader(path)
    except (OSError, InputError):
        return False


def _animated(path: Path) -> bool:
    capture = opencv.open_video(path)
    return bool(capture.read()[0] and capture.read()[0])


def read_bgr(path: Path) -> UInt8:
    """An image file as uint8 [H, W, 3] BGR.

    Grey becomes BGR, 16 bits become 8, transparency is dropped, of several pictures the first is taken (logged once per
    file). Raises SourceError for one that is missing, empty, cut short or no image.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SourceError(
                f"{str(path)!r} is larger than {MOST_BYTES >> 30} GiB, which no image should be: give another"
            )
        data = path.read_bytes()
    except FileNotFoundError:
        raise SourceError(f"no file {str(path)!r}: check the path") from None
    except OSError as error:
        raise SourceError(f"cannot read {str(path)!r}: {error.strerror}") from None
    if not data:
        raise SourceError(f"{str(path)!r} is empty: replace it")
    if data.startswith(MISREAD):
        raise SourceError(f"{str(path)!r} is a PAM or PFM, whose colours OpenCV gets wrong: convert it to PNG")
    if headers.cut_short(data):
        raise SourceError(f"{str(path)!r} is cut short or damaged: copy it again")
    try:
        image, found = _decoded(path, data)
    except cv2.error as error:
        raise SourceError(f"{str(path)!r} cannot be decoded ({error.err}): use a smaller or another image") from None
    if image is None:
        raise SourceError(f"{str(path)!r} is not an image OpenCV can decode: convert it to PNG")
    if found.pictures > 1:
        _warn_once(f"{path}: it holds several pictures, the first is taken")
    if found.alpha:
        _warn_once(f"{path}: transparency is dropped")
    if found.deep:
        _warn_once(f"{path}: 16 bits become 8")
    return image.astype(np.uint8, copy=False)


def decode_bgr(data: bytes, what: str) -> UInt8:
    """A JPEG or PNG that did not come as a file, as uint8 [H, W, 3] BGR, with what ``read_bgr`` drops.

    Raises SourceError for anything else, and for one that is cut short; ``what`` is it, for the message.
    """
    if not data.startswith((b"\xff\xd8", headers.PNG)):
        raise SourceError(f"{what} is neither a JPEG nor a PNG")
    if headers.cut_short(data):
        raise SourceError(f"{what} is cut short or damaged")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise SourceError(f"{what} cannot be decoded ({error.err})") from None
    if image is None:
        raise SourceError(f"{what} cannot be decoded")
    return image.astype(np.uint8, copy=False)


def _decoded(path: Path, data: bytes) -> tuple[npt.NDArray[Any] | None, headers.Facts]:
    """An image [H, W, 3] BGR, None where it is none, and what was dropped of it."""
    found = headers.facts(data)
    if found is not None and found.alpha_kind == headers.UNASSOCIATED:
        data = headers.as_associated(data, found)  # libtiff would multiply the colours by it
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None and data[:6] in headers.GIFS:  # this OpenCV may lack its own decoder but have FFmpeg's
        image = opencv.open_video(path).read()[1]
    if found is None:
        return image, _seen(path, data)
    if found.alpha_kind == headers.ASSOCIATED and image is not None:
        image = _divided(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED), image)
    return image, found


def _seen(path: Path, data: bytes) -> headers.Facts:
    """The facts of a format whose headers are not parsed here, by decoding it."""
    whole = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    animated = b"avis" in data[8:64] if data[4:8] == b"ftyp" else data[:6] in headers.GIFS and _animated(path)
    pictures = 2 if animated else 1
    if whole is None:
        return headers.Facts(pictures)
    opaque = 65535 if whole.dtype == np.uint16 else 255
    clear = whole.ndim == 3 and whole.shape[2] == 4 and bool((whole[..., 3] < opaque).any())
    return headers.Facts(pictures, clear, whole.dtype == np.uint16)


def _divided(whole: npt.NDArray[Any] | None, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The colours of an image that holds them multiplied by its alpha: from ``whole``, BGRA, or else ``image``."""
    if whole is None or whole.shape != (*image.shape[:2], 4):
        return image
    alpha = whole[..., 3:].astype(np.float32)
    return np.rint(np.minimum(255.0, 255.0 * whole[..., :3] / np.maximum(alpha, 1.0)))


def _warn_once(message: str) -> None:
    if _LOGGED.first(message):
        log.warning(message)


def write(path: Path, image: UInt8) -> None:
    """Write uint8 BGR [H, W, 3] in the format of the ending; a file appears whole or not at all."""
    try:
        done, data = cv2.imencode(_format(path.suffix), image)
    except cv2.error as error:
        raise InputError(_not_encoded(path, image, error.err)) from None
    if not done:
        raise InputError(_not_encoded(path, image))
    partial = beside(path)
    try:
        partial.write_bytes(data.tobytes())
        partial.replace(path)
    except OSError as error:
        raise DiinnError(f"cannot write {str(path)!r}: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def _format(suffix: str) -> str:
    return WRITTEN_AS.get(suffix.lower(), suffix.lower()) or ".png"


@cache
def can_write(suffix: str) -> bool:
    """Whether results can be written in the format of an ending as they are."""
    if suffix.lower() in NOT_WRITTEN or not suffix.isascii():
        return False
    try:
        return bool(cv2.imencode(_format(suffix), np.zeros((16, 16, 3), np.uint8))[0])
    except cv2.error:
        return False


def _not_encoded(path: Path, image: UInt8, why: str = "") -> str:
    """The message for an image that could not be encoded."""
    height, width = image.shape[:2]
    most = LONGEST_SIDE.get(_format(path.suffix))
    if most is not None and max(width, height) > most:
        return f"{path.suffix} images are at most {most} pixels wide and high, not {width}x{height}: use .png"
    others = " or ".join(other for other in (".png", ".jpg") if other != path.suffix.lower())
    return f"OpenCV cannot write {width}x{height} as {path.suffix!r}{f' ({why})' if why else ''}: use {others}"


def beside(path: Path, ending: str = "") -> Path:
    """Where to write what is to become ``path``: in its folder, under a new ASCII name.

    The name is short enough for any file system.
    """
    return path.with_name(f".diinn-{os.getpid()}-{next(_NUMBERS)}.partial{ending}")
