"""Image and video files: written beside their names and renamed when whole."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.geometry.grid import Size
from diinn.runtime.images import files as image_files
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.stream.result import Result
from diinn.runtime.stream.sink import Sink
from diinn.runtime.util import opencv
from diinn.runtime.util.containers import extent
from diinn.runtime.util.file_names import fitting
from diinn.runtime.util.once import Once
from diinn.runtime.util.opencv import cv2

log = logging.getLogger(__name__)
VIDEO_SUFFIXES = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v"}
LEAST_FREE = 16 * 2**20  # bytes a disk must keep while frames are written: OpenCV does not report a full one
COUNTING_SECONDS = 0.8  # for the packets of a video in which the last frame was not found by its number
LONGEST_GAP = 300  # frames a still picture may stand for in a video


class ImageFile(Sink):
    """One image file for one still image."""

    def __init__(self, path: Path) -> None:
        self.where, self._path = str(path), path

    def write(self, result: Result) -> None:
        make_folder(self._path.parent)
        image_files.write(self._path, result.image)


class ImageFolder(Sink):
    """An image file for each result.

    Still images keep their names, a camera's frames are named by the time they were captured, seconds since the epoch,
    those of a video numbered from 0.

    suffix: what kind of image, empty for a still image's own
    """

    def __init__(self, folder: Path, suffix: str = "", *, live: bool = False) -> None:
        self.where, self._folder, self._suffix, self._live = str(folder), folder, suffix, live
        self._count = self._failures = 0
        self._logged = Once()

    def write(self, result: Result) -> None:
        frame = result.frame
        name = f"{frame.captured:.6f}" if self._live else f"{frame.sequence:06d}"
        relative = still_name(frame.path, self._suffix) if frame.path else Path(name + self._suffix)
        if frame.path and relative.suffix != (self._suffix or frame.path.suffix):
            suffix = frame.path.suffix
            if self._logged.first(suffix):
                log.warning(
                    "results of %s images are written as %s.png: OpenCV does not write them as they are", suffix, suffix
                )
        path = self._folder / relative
        make_folder(path.parent)
        check_disk(path.parent, f"the images in {self.where!r}", self._count)
        try:
            image_files.write(path, result.image)
        except DiinnError as error:
            if frame.path is None:
                raise
            self._failures += 1  # of this image: the others are done
            log.error("%s", error)
        self._count += 1

    def close(self, *, failed: bool = False) -> None:
        if self._failures:
            raise DiinnError(f"{self._failures} of {self._count} images could not be written")


class VideoFile(Sink):
    """A video of one source, written beside its name and renamed when whole.

    Frames of a file follow each other. Those of a live source stand where they arrived: gaps are filled
    with the frame before, so that time in the video is time. What was written before an error is kept. A view that
    changes its size is fitted; codecs want even sizes: an odd one is padded by repeating its last row or column.

    rate: gives the frames per second, called with the first frame
    """

    closing_seconds = 10.0  # an unfinished video cannot be played, so slow disks are waited for

    def __init__(self, path: Path, rate: Callable[[], float], live: bool) -> None:
        self.where, self._path, self._stated, self._live = str(path), path, rate, live
        self._partial = image_files.beside(path, path.suffix.lower())
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._last: UInt8 | None = None
        self._start = 0.0
        self._count = 0
        self._logged = Once()

    def write(self, result: Result) -> None:
        arrived, image = result.frame.arrived, result.image
        if self._writer is None:
            self._open((image.shape[1], image.shape[0]))
            self._start = arrived
        if (image.shape[1], image.shape[0]) != self._size:
            image = fitted(result, self._size, self.where, self._logged)
        check_disk(self._path.parent, f"the video {self.where!r}", self._count)
        if self._live:
            due = round((arrived - self._start) * self._rate)
            if due < self._count:
                return  # captured faster than the rate the camera states
            missing = due - self._count
            if missing > LONGEST_GAP:  # the camera was away: the video leaves that time out
                self._start += (missing - LONGEST_GAP) / self._rate
                missing = LONGEST_GAP
            for _ in range(missing):
                self._put(image if self._last is None else self._last)
        self._put(image)
        self._last = image

    def _open(self, size: Size) -> None:
        make_folder(self._path.parent)
        check_disk(self._path.parent, f"the video {self.where!r}", 0)
        self._rate = self._stated()
        codec = VIDEO_SUFFIXES[self._path.suffix.lower()]
        writer = opencv.open_writer(self._partial, codec, self._rate, even(size))
        if not writer.isOpened():
            self._partial.unlink(missing_ok=True)
            raise InputError(
                f"OpenCV cannot write {size[0]}x{size[1]} video to {self.where!r}: use .avi or a smaller size"
            )
        self._writer, self._size = writer, size

    def _put(self, image: UInt8) -> None:
        assert self._writer is not None
        self._writer.write(padded(image))
        self._count += 1

    def close(self, *, failed: bool = False) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        first, last = self._readable()
        if not first:
            self._partial.unlink(missing_ok=True)
            raise DiinnError(
                f"the video {self.where!r} could not be written: use .avi or another --output, or look whether sizes "
                "of files are limited (ulimit -f)"
            )
        self._partial.replace(self._path)
        if not last:
            raise DiinnError(
                f"the video {self.where!r} is not whole, though {self._count} frames were written: look whether its "
                "disk is full or its size limited (ulimit -f); what is there was kept"
            )

    def _readable(self) -> tuple[bool, bool]:
        """Whether the first and the last frame of what was written can be read, however long it is."""
        finished = extent(self._partial).finished
        written = opencv.open_video(self._partial)
        try:
            first = bool(written.isOpened() and written.read()[0])
            if not (first and finished) or self._count == 1:  # without an index a look at the end may take hours
                return first, first and finished
            written.set(cv2.CAP_PROP_POS_FRAMES, self._count - 1)
            last = bool(written.read()[0])
        finally:
            written.release()
        return first, last or opencv.count_packets(self._partial, COUNTING_SECONDS) == self._count


def even(size: Size) -> Size:
    """The next size whose width and height are even."""
    return size[0] + size[0] % 2, size[1] + size[1] % 2


def padded(image: UInt8) -> UInt8:
    """An image of an even size: the last row or column of an odd one is repeated."""
    below, right = image.shape[0] % 2, image.shape[1] % 2
    if not (below or right):
        return image
    return np.asarray(cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE), np.uint8)


def still_name(path: Path, suffix: str) -> Path:
    """What an image is called as another kind of image, or as its own where that can be written."""
    if suffix:
        return path.with_name(fitting(path.with_suffix(suffix).name))
    return path if image_files.can_write(path.suffix) else path.with_name(fitting(path.name + ".png"))


def fitted(result: Result, size: Size, where: str, logged: Once) -> UInt8:
    """A result's image at the ``size`` (width, height) with which ``where`` began."""
    height, width = result.image.shape[:2]
    if logged.first("fitted"):
        log.warning(
            "%s changed its size to %dx%d: fitted to the %dx%d of %s; --out-size keeps one size",
            *(result.camera, width, height, *size, where),
        )
    return np.asarray(cv2.resize(result.image, size, interpolation=cv2.INTER_AREA), np.uint8)


def check_folder(folder: Path) -> None:
    """InputError where nothing can be written to ``folder``, which may have to be made yet."""
    there = next((part for part in (folder, *folder.absolute().parents) if part.exists()), Path("/"))
    if there.is_dir() and not (os.access(there, os.W_OK) and os.statvfs(there).f_blocks):  # /proc has no blocks
        raise InputError(f"cannot write to {str(folder)!r}: choose another --output")


def check_disk(folder: Path, what: str, count: int) -> None:
    """InputError where ``folder`` takes nothing, DiinnError where its disk has no room left, after ``count`` frames."""
    check_folder(folder)
    if not folder.is_dir():
        raise InputError(f"cannot write to {str(folder)!r}, which is gone: choose another --output")
    stat = os.statvfs(folder)
    if stat.f_bavail * stat.f_frsize < LEAST_FREE:
        least = LEAST_FREE // 2**20
        raise DiinnError(f"the disk of {what} has less than {least} MiB left: it was ended after {count} frames")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; InputError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make folder {str(folder)!r}: {error.strerror}: choose another --output") from None
