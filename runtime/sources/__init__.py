"""Where frames come from: one URI names a camera, a video, images or the demo."""

from __future__ import annotations

import glob
import logging
import os
import re
from pathlib import Path
from urllib.parse import unquote

import cv2
from diinn.runtime import images
from diinn.runtime.errors import SourceError, unknown
from diinn.runtime.grid import Size
from diinn.runtime.sources.base import Frame, Source
from diinn.runtime.sources.files import ImageFiles, VideoFile
from diinn.runtime.sources.live import DEMO_SIZE, Camera, DemoCamera, LiveSource, csi_pipeline

__all__ = ["Frame", "LiveSource", "Source", "open_camera", "open_input", "public"]
log = logging.getLogger(__name__)
SCHEMES = ("v4l2", "csi", "rtsp", "http", "https", "file", "demo")


def open_camera(uri: str, size: Size | None, *, loop: bool = False, paced: bool = True) -> Source:
    """The source that ``uri`` names: ``0``, ``/dev/video0``, ``v4l2:///dev/video0``, ``csi://0``,
    ``rtsp://…``, ``http://…``, ``file://clip.mp4`` or ``demo``.

    size: (width, height) asked of the camera; paced: whether the demo keeps its frame rate
    """
    if uri == "demo" or uri.startswith("demo:"):
        camera: LiveSource = DemoCamera("demo", size or DEMO_SIZE, paced=paced)
    elif uri.isascii() and uri.isdigit() and len(uri) < 5:
        camera = Camera(uri, int(uri), size, cv2.CAP_ANY)
    else:
        scheme, separator, rest = uri.partition("://")
        if not separator:
            if uri.startswith("/dev/"):
                return open_camera(f"v4l2://{uri}", size)
            hint = f"; for a file use --input {uri}" if os.path.exists(uri) else ""  # noqa: PTH110  never raises
            raise SourceError(f"camera {public(uri)!r} is neither a number, a device nor a URI{hint}")
        if scheme == "file":
            return open_input(uri, loop=loop)
        if scheme == "csi":
            camera = Camera(uri, csi_pipeline(rest, size), None, cv2.CAP_GSTREAMER)
        elif scheme == "v4l2":
            if not Path(rest).exists():
                raise SourceError(f"no such camera {rest!r}: list them with ls /dev/video*, or try --camera demo")
            camera = Camera(uri, rest, size, cv2.CAP_V4L2)
        elif scheme in ("rtsp", "http", "https"):
            if size is not None:
                log.warning("%s: the stream decides its frame size, --input-size is ignored", public(uri))
            camera = Camera(public(uri), uri, None, cv2.CAP_FFMPEG)
        else:
            raise SourceError(unknown("camera scheme", scheme, SCHEMES))
    return camera


def open_input(pattern: str, *, loop: bool = False) -> Source:
    """A file, a folder (searched recursively) or a glob of images, or a video file."""
    pattern = unquote(pattern.removeprefix("file://")) if pattern.startswith("file://") else pattern
    if re.match(r"[a-z0-9]+://", pattern):
        raise SourceError(f"--input takes files, {public(pattern)!r} is a stream: give it as --camera")
    if not pattern:
        raise SourceError("--input is empty: give a file, a folder or a quoted glob")
    path = Path(pattern)
    if path.is_dir():
        files = images.find(path)
        if not files:
            raise SourceError(f"no image in folder {pattern!r}: looked for {', '.join(sorted(images.SUFFIXES))}")
        return ImageFiles(path.resolve().name, [(p, p.relative_to(path)) for p in files])
    if path.is_file():
        if path.suffix.lower() in images.SUFFIXES:
            return ImageFiles(path.name, [(path, Path(path.name))])
        return VideoFile(path.name, path, loop)
    matches = sorted(Path(p) for p in glob.glob(pattern, recursive=True))  # noqa: PTH207  takes absolute patterns
    files = [p for p in matches if p.is_file() and p.suffix.lower() in images.SUFFIXES]
    if not files:
        hint = f"for a camera use --camera {pattern}" if pattern.isdigit() else "check the path"
        raise SourceError(f"no file, folder or image matches {pattern!r}: {hint}")
    names = [p.name for p in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise SourceError(f"{pattern!r} matches several files called {twice!r}: give their folder instead")
    return ImageFiles(pattern, [(p, Path(p.name)) for p in files])


def public(uri: str) -> str:
    """``uri`` without what may be secret, for logs, statistics and messages: everything up to the last @
    behind the scheme (user name and password) and the query."""
    return re.sub(r"^([a-z0-9]+://)?(.*@)?([^?#]*).*$", r"\1\3", uri, flags=re.DOTALL | re.IGNORECASE)
