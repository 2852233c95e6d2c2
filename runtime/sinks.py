"""Where frames go: a video or image file, a folder, a window, or nowhere."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import cv2
from diinn.runtime import images
from diinn.runtime.errors import DiinnError, InputError, unknown
from diinn.runtime.grid import Size
from diinn.runtime.images import UInt8
from diinn.runtime.sources import Frame, Source

log = logging.getLogger(__name__)
VIDEO_SUFFIXES = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "mp4v", ".mov": "mp4v"}
LEAST_FREE = 16 * 2**20  # bytes a disk must keep while a video is written: OpenCV does not report a full one
LONGEST_GAP = 300  # frames a still picture may stand for in a video


class Sink(ABC):
    """A place for processed frames; ``close`` finishes what is being written."""

    where: str
    closed = False  # whether whoever watches has had enough

    @abstractmethod
    def write(self, frame: Frame, image: UInt8) -> None:
        """Take ``image`` uint8 [h, w, 3] BGR, made from ``frame``."""

    def close(self, *, failed: bool = False) -> None:  # noqa: B027  most sinks have nothing to finish
        """Finish the file being written; ``failed`` says that the run ended in an error."""


class Nowhere(Sink):
    """Statistics only."""

    where = "none"

    def write(self, frame: Frame, image: UInt8) -> None:
        pass


class ImageFile(Sink):
    """One image file for one still image."""

    def __init__(self, path: Path) -> None:
        self.where, self._path = str(path), path

    def write(self, frame: Frame, image: UInt8) -> None:
        _make_folder(self._path.parent)
        images.write(self._path, image)


class ImageFolder(Sink):
    """Still images under the names they came by."""

    def __init__(self, folder: Path) -> None:
        self.where, self._folder = str(folder), folder

    def write(self, frame: Frame, image: UInt8) -> None:
        assert frame.path is not None
        path = self._folder / frame.path
        _make_folder(path.parent)
        images.write(path, image)


class VideoFile(Sink):
    """A video of one source, written beside its name and renamed when whole.

    Frames of a file follow each other. Those of a live source stand where they arrived: gaps are filled
    with the frame before, so that time in the video is time. After an error what a live source gave is
    kept; what was made of a file is not, since it would be half of it.
    """

    def __init__(self, path: Path, rate: float, live: bool) -> None:
        self.where, self._path, self._rate, self._live = str(path), path, rate, live
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)
        self._last: UInt8 | None = None
        self._start = 0.0
        self._count = 0

    def write(self, frame: Frame, image: UInt8) -> None:
        size = (image.shape[1], image.shape[0])
        if self._writer is None:
            self._open(size)
            self._start = frame.arrived
        if size != self._size:
            raise DiinnError(
                f"{frame.source} changed its size: {size} does not fit the video {self.where!r}, use --out-size"
            )
        if self._count % 30 == 0:
            self._check_disk()
        if self._live:
            due = round((frame.arrived - self._start) * self._rate)
            if due < self._count:
                return  # captured faster than the rate the camera states
            for _ in range(min(due - self._count, LONGEST_GAP)):
                self._put(image if self._last is None else self._last)
        self._put(image)
        self._last = image

    def _open(self, size: Size) -> None:
        _make_folder(self._path.parent)
        self._check_disk()
        fourcc = cv2.VideoWriter.fourcc(*VIDEO_SUFFIXES[self._path.suffix.lower()])
        writer = cv2.VideoWriter(str(self._partial), fourcc, self._rate, size)
        if not writer.isOpened():
            self._partial.unlink(missing_ok=True)
            raise InputError(
                f"OpenCV cannot write {size[0]}x{size[1]} video to {self.where!r}: use .avi or a smaller size"
            )
        self._writer, self._size = writer, size

    def _check_disk(self) -> None:
        if not os.access(self._path.parent, os.W_OK):
            raise InputError(f"cannot write to {str(self._path.parent)!r}: choose another --output")
        stat = os.statvfs(self._path.parent)
        if stat.f_bavail * stat.f_frsize < LEAST_FREE:
            raise DiinnError(f"the disk of {self.where!r} is full: the video was ended after {self._count} frames")

    def _put(self, image: UInt8) -> None:
        assert self._writer is not None
        self._writer.write(image)
        self._count += 1

    def close(self, *, failed: bool = False) -> None:
        if self._writer is None:
            return
        self._writer.release()
        self._writer = None
        if failed and not self._live:
            self._partial.unlink(missing_ok=True)
            return
        written = cv2.VideoCapture(str(self._partial))
        whole = written.isOpened() and written.read()[0]
        written.release()
        if not whole:
            self._partial.unlink(missing_ok=True)
            raise DiinnError(f"the video {self.where!r} could not be written: use .avi or another --output")
        self._partial.replace(self._path)


class Window(Sink):
    """A window; q or Escape ends the run (``closed``).

    hold: keep a still image until a key is pressed; stopped: says when to give up waiting for one
    """

    where = "display://0"

    def __init__(self, title: str, hold: bool, stopped: Callable[[], bool]) -> None:
        self._title, self._hold, self._stopped = title, hold, stopped
        try:
            cv2.namedWindow(title, cv2.WINDOW_AUTOSIZE)
        except cv2.error:
            raise InputError(
                "OpenCV cannot open a window here: use --headless, --output FILE, or an OpenCV with a GUI"
            ) from None

    def write(self, frame: Frame, image: UInt8) -> None:
        cv2.imshow(self._title, image)
        key = cv2.waitKey(1)
        while self._hold and key < 0 and not self._gone() and not self._stopped():
            key = cv2.waitKey(50)
        self.closed = self._gone() or key & 0xFF in (ord("q"), 27)

    def _gone(self) -> bool:
        return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1

    def close(self, *, failed: bool = False) -> None:
        cv2.destroyAllWindows()


def has_display() -> bool:
    """Whether a window could be seen."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def open_sink(
    output: str | None, source: Source, *, several: bool, headless: bool, stopped: Callable[[], bool]
) -> Sink:
    """The sink ``output`` names for ``source``: a file, a folder, ``display://0``, ``none``, or for
    None a window where there is a display.

    several: whether there are other sources, which a single file cannot hold
    """
    still = bool(source.files)
    if output is None:
        if headless or not has_display():
            return Nowhere()
        try:
            return Window(f"diinn {source.name}", still, stopped)
        except InputError as error:
            log.warning("%s", error)
            return Nowhere()
    if output == "none":
        return Nowhere()
    scheme, separator, rest = output.partition("://")
    if separator and scheme == "display":
        if headless:
            raise InputError("--headless and --output display:// exclude each other")
        if not has_display():
            raise InputError(f"--output {output}: there is no display here; give a file, a folder or none")
        return Window(f"diinn {source.name}", still, stopped)
    if separator and scheme != "file":
        raise InputError(unknown("output scheme", scheme, ("display", "file")))
    if not (rest if separator else output):
        raise InputError("--output is empty: give a file, a folder, display://0 or none")
    return _file_sink(Path(rest if separator else output), source, several)


def _file_sink(path: Path, source: Source, several: bool) -> Sink:
    suffix = path.suffix.lower()
    still = bool(source.files)
    if path.is_dir() or not suffix:
        if still:
            folder = path / _file_name(source.name) if several else path
            _keep_apart(source, lambda relative: folder / relative)
            return ImageFolder(folder)
        name = Path(_file_name(source.name))
        named = name if name.suffix.lower() in VIDEO_SUFFIXES else Path(f"{name}.mp4")
        return VideoFile(path / named, source.rate or 30.0, source.live)
    if several or len(source.files) > 1:
        raise InputError(f"one file {str(path)!r} cannot hold several sources or images: give a folder")
    if suffix in VIDEO_SUFFIXES:
        if still:
            raise InputError(f"images do not go into a video {str(path)!r}: give a folder or an image file")
        return VideoFile(path, source.rate or 30.0, source.live)
    if suffix not in images.SUFFIXES:
        raise InputError(f"--output {str(path)!r}: " + unknown("ending", suffix, [*VIDEO_SUFFIXES, *images.SUFFIXES]))
    if not still:
        raise InputError(
            f"frames of {source.name} do not go into one image {str(path)!r}: give a folder or a video file"
        )
    _keep_apart(source, lambda _: path)
    return ImageFile(path)


def _keep_apart(source: Source, target: Callable[[Path], Path]) -> None:
    """InputError if a result would replace the image it is made from."""
    for file, relative in source.files:
        if target(relative).resolve() == file.resolve():
            raise InputError(f"--output would replace the input {str(file)!r}: choose another")


def _file_name(source: str) -> str:
    """A source's name as one a file may have."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in source).strip("_.") or "camera"


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make folder {str(folder)!r}: {error.strerror}: choose another --output") from None
