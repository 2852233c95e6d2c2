"""Where frames go: a video or image file, a folder, a window, or nowhere."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from diinn.runtime import images
from diinn.runtime.errors import DiinnError, InputError, unknown
from diinn.runtime.sources import Frame, Source

log = logging.getLogger(__name__)
VIDEO_SUFFIXES = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v"}
LEAST_FREE = 16 * 2**20  # bytes a disk must keep while a video is written: OpenCV does not report a full one
LONGEST_GAP = 300  # frames a still picture may stand for in a video


class Sink(ABC):
    """A place for processed frames; ``close`` finishes what is being written."""

    where: str

    @abstractmethod
    def write(self, frame: Frame, image: npt.NDArray[np.uint8]) -> None:
        """Take ``image`` uint8 [h, w, 3] BGR, made from ``frame``."""

    def close(self) -> None:  # noqa: B027  most sinks have nothing to finish
        """Finish the file being written, if any."""


class Nowhere(Sink):
    """Statistics only."""

    where = "none"

    def write(self, frame: Frame, image: npt.NDArray[np.uint8]) -> None:
        pass


class ImageFile(Sink):
    """One image file for one still image."""

    def __init__(self, path: Path) -> None:
        self.where, self._path = str(path), path

    def write(self, frame: Frame, image: npt.NDArray[np.uint8]) -> None:
        images.write(self._path, image)


class ImageFolder(Sink):
    """Images under the names they came by; frames of a camera or video as NAME-000000.png."""

    def __init__(self, folder: Path) -> None:
        self.where, self._folder = str(folder), folder
        _make_folder(folder)

    def write(self, frame: Frame, image: npt.NDArray[np.uint8]) -> None:
        relative = frame.path or Path(f"{_file_name(frame.source)}-{frame.sequence:06d}.png")
        path = self._folder / relative
        _make_folder(path.parent)
        images.write(path, image)


class VideoFile(Sink):
    """A video of one source, at its frame rate; frames a live source dropped are filled with the
    one before, so that time in the video is time. Written beside its name, renamed when whole."""

    def __init__(self, path: Path, rate: float) -> None:
        self.where, self._path, self._rate = str(path), path, rate
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._last: tuple[int, npt.NDArray[np.uint8]] | None = None
        self._count = 0
        _make_folder(path.parent)
        _check_writable(path.parent)

    def write(self, frame: Frame, image: npt.NDArray[np.uint8]) -> None:
        if self._count % 30 == 0 and _free(self._path.parent) < LEAST_FREE:
            raise DiinnError(f"the disk of {self.where!r} is full: the video was ended after {self._count} frames")
        if self._writer is None:
            size = (image.shape[1], image.shape[0])
            fourcc = cv2.VideoWriter.fourcc(*VIDEO_SUFFIXES[self._path.suffix.lower()])
            self._writer = cv2.VideoWriter(str(self._partial), fourcc, self._rate, size)
            if not self._writer.isOpened():
                raise InputError(
                    f"OpenCV cannot write {size[0]}x{size[1]} video to {self.where!r}: use .avi or a folder"
                )
        if self._last is not None:
            sequence, before = self._last
            for _ in range(min(frame.sequence - sequence - 1, LONGEST_GAP)):
                self._put(before)
        self._put(image)
        self._last = frame.sequence, image

    def _put(self, image: npt.NDArray[np.uint8]) -> None:
        assert self._writer is not None
        self._writer.write(image)
        self._count += 1

    def close(self) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        written = cv2.VideoCapture(str(self._partial))
        whole = written.isOpened() and written.read()[0]
        written.release()
        if not whole:
            self._partial.unlink(missing_ok=True)
            raise DiinnError(f"the video {self.where!r} could not be written: is the disk full?")
        self._partial.replace(self._path)


class Window(Sink):
    """A window; q or Escape ends the run (``closed``)."""

    where = "display://0"

    def __init__(self, title: str, hold: bool) -> None:
        self._title, self._hold = title, hold
        self.closed = False
        try:
            cv2.namedWindow(title, cv2.WINDOW_AUTOSIZE)
        except cv2.error:
            raise InputError(
                "OpenCV cannot open a window here: use --headless, --output FILE, or an OpenCV with a GUI"
            ) from None

    def write(self, frame: Frame, image: npt.NDArray[np.uint8]) -> None:
        cv2.imshow(self._title, image)
        key = cv2.waitKey(0 if self._hold else 1) & 0xFF
        gone = cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1
        self.closed = gone or key in (ord("q"), 27)

    def close(self) -> None:
        cv2.destroyAllWindows()


def has_display() -> bool:
    """Whether a window could be seen."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_sink(output: str | None, source: Source, several: bool, headless: bool) -> Sink:
    """The sink ``output`` names for ``source``: a file, a folder, ``display://0``, ``none``, or for
    None a window where there is a display.

    several: whether there are other sources, which a single file cannot hold
    """
    still = source.rate is None
    if output is None:
        output = "display://0" if has_display() and not headless else "none"
    if output == "none":
        return Nowhere()
    scheme, separator, rest = output.partition("://")
    if separator and scheme == "display":
        if headless:
            raise InputError("--headless and --output display:// exclude each other")
        if not has_display():
            raise InputError(f"--output {output}: there is no display here; give a file, a folder or none")
        return Window(f"diinn {source.name}", hold=still)
    if separator and scheme != "file":
        raise InputError(unknown("output scheme", scheme, ("display", "file")))
    path = Path(rest if separator else output)
    suffix = path.suffix.lower()
    if path.is_dir() or not suffix:
        if several and not still:
            _make_folder(path)
            return VideoFile(path / f"{_file_name(source.name)}.mp4", source.rate or 30.0)
        return ImageFolder(path)
    if several:
        raise InputError(f"one file {output!r} cannot hold several sources: give a folder")
    if suffix in VIDEO_SUFFIXES:
        if still:
            raise InputError(f"images do not go into a video {output!r}: give a folder or an image file")
        return VideoFile(path, source.rate or 30.0)
    if suffix not in images.SUFFIXES:
        endings = [*VIDEO_SUFFIXES, *images.SUFFIXES]
        raise InputError(f"--output {output!r}: " + unknown("ending", suffix, endings))
    if not still:
        raise InputError(f"frames of {source.name} do not go into one image {output!r}: give a folder or a video file")
    _make_folder(path.parent)
    return ImageFile(path)


def _file_name(source: str) -> str:
    """A source's name as one a file may have."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in source).strip("_.") or "camera"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make folder {str(folder)!r}: {error.strerror}: choose another --output") from None


def _check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write to {str(folder)!r}: choose another --output")


def _free(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize
