"""One URI names a camera, a video, images or the demo."""

from __future__ import annotations

import glob
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

import cv2
from diinn.runtime.errors import InputError, SourceError, unknown
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.view import check_size
from diinn.runtime.images import files as image_files
from diinn.runtime.images import folders
from diinn.runtime.sources import bag, demo, ros_topic
from diinn.runtime.sources.bag import BagTopic
from diinn.runtime.sources.bag_file import is_bag
from diinn.runtime.sources.base import Source
from diinn.runtime.sources.camera import Camera, RetryPolicy
from diinn.runtime.sources.capture import DEMO, DEMO_RATE, CaptureRequest
from diinn.runtime.sources.files import DemoFile, ImageFiles, VideoFile
from diinn.runtime.sources.pixel_formats import CODECS, FLIPS
from diinn.runtime.util import ros
from diinn.runtime.util.file_names import local

log = logging.getLogger(__name__)
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+(%[\w.-]+)?\]|[\w.-]+)(:\d{1,5})?")  # a name or an address, and a port
OTHER_STILLS = frozenset(
    [
        ".arw",
        ".cr2",
        ".cur",
        ".dds",
        ".dng",
        ".exr",
        ".heic",
        ".heif",
        ".ico",
        ".nef",
        ".pcx",
        ".pdf",
        ".psd",
        ".qoi",
        ".sgi",
        ".svg",
        ".tga",
        ".xcf",
    ]
)
SCHEMES = ("v4l2", "csi", "gst", "rtsp", "http", "https", "file", ros_topic.SCHEME, DEMO)
DEMO_SIZE = (160, 120)
MOST_NOISE = 100
DEMO_PIXELS = demo.WIDTH * demo.HEIGHT


@dataclass(frozen=True)
class CaptureOptions:
    """How a source is opened, beside its URI.

    Attributes:
        size: (width, height) that a camera is requested to deliver; None for its own.
        rate: Frames per second that it is requested to deliver; None for its own.
        codec: Its pixel format, as ``--input-codec`` names them; None for the driver's choice.
        flip: How frames are turned, as ``--flip`` names it; None for not at all.
        loop: Whether videos start again at their end.
        noise: Of the demo camera's sensor, root mean square in grey levels.
        paced: Whether the demo keeps its frame rate.
        retry: When a camera counts as failed, and how it is tried again.
        results: Files and folders where results go; they are skipped where a folder of images holds them.
        start: Seconds of a bag that are left out.
        duration: Seconds of a bag that are taken; None for all.

    Raises:
        InputError: A value is out of its range or unknown.
    """

    size: Size | None = None
    rate: float | None = None
    codec: str | None = None
    flip: str | None = None
    loop: bool = False
    noise: float = 0.0
    paced: bool = True
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    results: tuple[Path, ...] = ()
    start: float = 0.0
    duration: float | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            check_size(self.size)
        if self.rate is not None and not isinstance(self.rate, int | float):
            raise InputError(f"rate {self.rate!r} is not a number of frames a second")
        if self.rate is not None and not 0.001 <= self.rate <= 1000:
            raise InputError(f"rate {self.rate:g} is not from 0.001 to 1000 frames/s")
        if isinstance(self.noise, bool) or not isinstance(self.noise, int | float) or not 0 <= self.noise <= MOST_NOISE:
            raise InputError(f"noise {self.noise!r} is not a number of grey levels from 0 to {MOST_NOISE}")
        for what, value, names in (("codec", self.codec, CODECS), ("flip", self.flip, FLIPS)):
            if value is not None and value not in names:
                raise InputError(unknown(what, value, names))


def open_source(uri: str, options: CaptureOptions | None = None) -> Source:
    """The source that ``uri`` names. Cameras are not opened before ``start``.

    Args:
        uri: ``0``, ``/dev/video0``, ``v4l2:///dev/video0``, ``csi://0``, ``gst://PIPELINE``, ``rtsp://…``,
            ``http://…``, ``ros2:///TOPIC``, ``demo``; ``file://PATH``, a folder, a file, a glob or a bag
            (``PATH?topic=/NAME``).
        options: How it is opened.

    Raises:
        SourceError: It can never work.
    """
    options, uri = options or CaptureOptions(), local(uri)
    if (uri.isascii() and uri.isdigit()) or uri.startswith("/dev/video") or scheme_of(uri) not in ("", "file"):
        return open_camera(uri, options)
    return open_input(uri, options)


def open_camera(uri: str, options: CaptureOptions | None = None) -> Source:
    """The camera that ``uri`` names; ``file://`` too, but no bare path."""
    options, uri = options or CaptureOptions(), local(uri)
    scheme, rest = scheme_of(uri), uri.partition("://")[2]
    if options.noise and scheme != DEMO:
        raise InputError(f"noise {options.noise:g} is for the demo camera: {public(uri)} has its own, leave it out")
    if scheme == "file":
        return open_input(uri, options)
    if scheme == DEMO:
        return _demo(options)
    if not scheme and not (uri.isascii() and uri.isdigit() and len(uri) < 5) and not uri.startswith("/dev/"):
        hint = f"; for a file use --input {uri}" if os.path.exists(uri) else ""  # noqa: PTH110  never raises
        if uri.partition(":/")[0].lower() in SCHEMES:
            hint = f": write {uri.partition(':')[0].lower()}:// with two slashes"
        raise SourceError(f"camera {public(uri)!r} is neither a number, a device nor a URI{hint}")
    if scheme and scheme not in (*SCHEMES, "rtsps"):
        raise SourceError(unknown("camera scheme", scheme, SCHEMES))
    if scheme in ("v4l2", "gst") and not rest.strip():
        raise SourceError(f"camera {uri} names nothing: write v4l2:///dev/video0 or gst://PIPELINE")
    if scheme == ros_topic.SCHEME:
        return _topic(f"{scheme}://{rest}", options)
    size: Size | None = options.size
    address: int | str = uri
    api, name = cv2.CAP_ANY, uri
    number = rest if scheme == "v4l2" else uri
    if number.isascii() and number.isdigit():
        address = int(number[:9])
        api = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
    elif uri.startswith("/dev/") or scheme == "v4l2":
        address, api = rest or uri, cv2.CAP_V4L2
    elif scheme in ("csi", "gst"):
        address, api = _pipeline(scheme, rest, options), cv2.CAP_GSTREAMER
        size, name = None, public(uri)
    else:
        api, name, size = cv2.CAP_FFMPEG, public(uri), None
        address = f"{scheme}://{rest}"  # FFmpeg knows them in small letters
        if not _host(rest)[0]:
            raise SourceError(
                f"camera {name} has no host where one belongs: write {scheme}://USER:PASSWORD@HOST:PORT/PATH, with "
                "%23, %2F, %3F and %40 for a hash, a slash, a question mark and an at sign in the password"
            )
        if options.size is not None or options.codec is not None:
            log.warning("%s: the stream decides its frame size and codec, what is asked is ignored", name)
    return Camera(name, CaptureRequest(address, api, size, options.rate, options.codec, options.flip), options.retry)


def _topic(uri: str, options: CaptureOptions) -> Source:
    topic, _ = ros_topic.split(uri)
    ros.check()
    if options.size is not None or options.codec is not None:
        log.warning("%s: its publisher decides its frame size and encoding, what is asked is ignored", topic)
    return Camera(topic, CaptureRequest(uri, rate=options.rate, flip=options.flip), options.retry)


def _demo(options: CaptureOptions) -> Source:
    size = options.size or DEMO_SIZE
    if size[0] * size[1] > DEMO_PIXELS:
        raise SourceError(f"the demo camera has no {size[0]}x{size[1]} frames: ask for at most 1920x1440")
    if not options.paced:
        return DemoFile(DEMO, size, DEMO_RATE, options.flip, options.noise)
    return Camera(
        DEMO,
        CaptureRequest(DEMO, size=size, rate=options.rate or DEMO_RATE, flip=options.flip, noise=options.noise),
        options.retry,
    )


def scheme_of(uri: str) -> str:
    """The URI's scheme in small letters, empty for a number or a path."""
    if uri == DEMO or uri.startswith(f"{DEMO}:"):
        return DEMO
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", uri)
    return found.group(1).lower() if found else ""


def same_device(uri: str) -> str | None:
    """A local camera's device, whatever name it was given by; None for what several may open."""
    scheme, path = scheme_of(uri), uri.partition("://")[2] if scheme_of(uri) else uri
    if scheme in ("", "v4l2") and path.isascii() and path.isdigit():
        return f"/dev/video{int(path[:9])}"
    if scheme in ("", "v4l2") and path.startswith("/dev/"):
        return str(Path(path).resolve())  # /dev/v4l/by-id/… are links
    return f"csi://{int(path[:9])}" if scheme == "csi" and path.isascii() and path.isdigit() else None


def open_input(pattern: str, options: CaptureOptions | None = None) -> Source:
    """A file, a folder (searched recursively) or a glob of images, a video file, or a bag.

    Of the options ``loop`` and ``flip`` apply, and those of bags.
    """
    options, pattern = options or CaptureOptions(), local(pattern)
    if options.noise:
        raise InputError(f"noise {options.noise:g} is for the demo camera: files have their own, leave it out")
    if scheme_of(pattern) == "file":
        pattern = unquote(pattern.partition("://")[2])
    if scheme_of(pattern) or (re.match(r"[a-z]+:/", pattern, re.IGNORECASE) and not os.path.exists(pattern)):  # noqa: PTH110
        raise SourceError(f"--input takes files, {public(pattern)!r} is a stream: give it as --camera")
    if not pattern:
        raise SourceError("--input is empty: give a file, a folder or a quoted glob")
    path, topics = Path(pattern), bag.split(pattern)[1]
    if topics or (os.path.exists(pattern) and is_bag(path)):  # noqa: PTH110  never raises
        return _bag(Path(bag.split(pattern)[0]), topics, options)
    if os.path.isdir(pattern):  # noqa: PTH112  never raises
        return _folder(path, options)
    if os.path.isfile(pattern):  # noqa: PTH113
        return (
            _film(path, options) if not _still(path) else ImageFiles(path.name, [(path, Path(path.name))], options.flip)
        )
    if os.path.exists(pattern):  # noqa: PTH110
        raise SourceError(f"{pattern!r} is neither a file nor a folder: copy what it gives into a file")
    return _glob(pattern, options)


def _bag(path: Path, topics: Sequence[str], options: CaptureOptions) -> Source:
    if not os.path.exists(path):  # noqa: PTH110
        raise SourceError(f"no bag {str(path)!r}: check the path")
    if len(topics) > 1:
        raise SourceError(f"{str(path)!r}: a camera is one topic: give {', '.join(topics)} to cameras of their own")
    if options.loop:
        raise SourceError(f"{str(path)!r} is a bag, which is read once: leave out --loop")
    topic = topics[0] if topics else None
    return BagTopic(path, topic, flip=options.flip, start=options.start, duration=options.duration)


def each_topic(uri: str) -> list[str]:
    """``uri`` itself, or of a bag's with several topics one for each."""
    path, topics = bag.split(local(uri))
    return [f"{path}?topic={topic}" for topic in topics] if len(topics) > 1 else [uri]


def _still(path: Path) -> bool:
    return path.suffix.lower() in image_files.SUFFIXES or image_files.is_image(path)


def _film(path: Path, options: CaptureOptions) -> Source:
    if path.suffix.lower() in OTHER_STILLS:  # FFmpeg takes some of them for videos of one frame
        raise SourceError(f"{str(path)!r} is an image of a kind that this OpenCV cannot read: convert it to PNG")
    return VideoFile(path.name, path, options.loop, options.flip)


def _folder(path: Path, options: CaptureOptions) -> Source:
    """The images of a folder and all below it."""
    found = folders.search(path, options.results)
    left_out = found.summary()
    if not found.files:
        looked = f"looked for {', '.join(sorted(image_files.SUFFIXES))} and what else OpenCV can read"
        raise SourceError(f"no image in folder {str(path)!r}: {looked}{'; ' if left_out else ''}{left_out}")
    if left_out:
        log.warning("%s: %s", path, left_out)
    return ImageFiles(path.resolve().name, [(p, p.relative_to(path)) for p in found.files], options.flip)


def _glob(pattern: str, options: CaptureOptions) -> Source:
    """The images that match, or a single video."""
    matches = [p for p in map(Path, sorted(glob.glob(pattern, recursive=True))) if p.is_file()]  # noqa: PTH207
    if "**" in pattern:  # which goes round and round where a link leads back
        matches = list({p.resolve(): p for p in reversed(matches)}.values())[::-1]
    files = [p for p in matches if _still(p)]
    others = sorted({*matches} - {*files})
    if not matches:
        hint = f"for a camera use --camera {pattern}" if pattern.isdigit() else "check the path"
        raise SourceError(f"no file, folder or image matches {public(pattern)!r}: {hint}")
    if not files and len(others) == 1:
        return _film(others[0], options)
    if not files:
        raise SourceError(
            f"{pattern!r} matches {len(others)} files, none of them an image: give each video as an --input of its own"
        )
    twice = next((name for name, count in Counter(p.name for p in files).items() if count > 1), None)
    if twice is not None:
        raise SourceError(f"{pattern!r} matches several files called {twice!r}: give their folder instead")
    left_out = folders.Search(left_out=Counter(p.suffix.lower() or "no ending" for p in others)).summary()
    if left_out:
        log.warning("%s: %s", pattern, left_out)
    return ImageFiles(pattern, [(p, Path(p.name)) for p in files], options.flip)


def public(uri: str) -> str:
    """``uri`` without what may be secret, for logs, statistics and messages.

    Of a network address scheme, host and port alone (paths and queries hold tokens, too), of a pipeline its first
    element. Paths of files stay.
    """
    found = re.match(r"\s*([a-z][a-z0-9+.-]*:/+)(.*)", uri, flags=re.DOTALL | re.IGNORECASE)
    if found is None:  # a path, or an address whose scheme was mistyped or forgotten
        return re.sub(r"\?[^?]*=.*", "?…", re.sub(r"^([^/]*:|[^/]*//).*@", "", uri, flags=re.DOTALL), flags=re.DOTALL)
    if found[1].lower().startswith(("file:", "v4l2:", "ros2:")):
        return uri
    scheme, rest = found.groups()
    if scheme.lower() == "gst://":
        return scheme + "".join(rest.partition("!")[0].split()[:1])
    host, path = _host(rest)
    # With an @ later on a password may hold a slash, and what looks like the host be a part of it.
    return scheme + (host if host and "@" not in path else "…")


def _host(address: str) -> tuple[str, str]:
    """Host and port of a network address without its scheme, empty where there is none, and what follows them."""
    authority = re.split("[/?#]", address, maxsplit=1)[0]
    host = authority.rpartition("@")[2].partition(";")[0]
    return host if HOST.fullmatch(host) else "", address[len(authority) :]


def has_gstreamer() -> bool:
    """Whether this OpenCV was built with GStreamer: JetPack's and Debian's are, pip's are not."""
    return any("GStreamer:" in line and "YES" in line for line in cv2.getBuildInformation().splitlines())


def _pipeline(scheme: str, rest: str, options: CaptureOptions) -> str:
    """The pipeline for GStreamer: the user's own, or NVIDIA's Argus camera source."""
    if scheme == "csi" and not (rest.isascii() and rest.isdigit()):
        raise SourceError(f"csi://{rest} does not name a sensor by number: use csi://0")
    if not has_gstreamer():
        raise SourceError(
            f"{scheme}:// needs an OpenCV with GStreamer, this one has none: use the system's OpenCV (JetPack)"
        )
    sink = "appsink drop=true max-buffers=1 sync=false"
    if scheme == "gst":
        if "x-bayer" in rest and "bayer2rgb" not in rest:
            raise SourceError("gst:// with video/x-bayer frames: add '! bayer2rgb ! videoconvert' to the pipeline")
        if re.search(r"\bappsink\b[^!]*\bname=(?![^\s!]*(?:appsink|opencvsink))", rest):
            raise SourceError("gst:// with a name for its appsink: leave name= out, OpenCV would not find it")
        convert = "videoconvert ! video/x-raw,format=BGR"  # OpenCV takes NV12 for grey, and JPEG's bytes for pixels
        own, count = re.subn(r"!\s*appsink\b", f"! {convert} ! appsink", rest)
        return own if count else f"{rest} ! {convert} ! {sink}"
    width, height = options.size or (1280, 720)
    rate = f",framerate={options.rate:g}/1" if options.rate and options.rate == int(options.rate) else ""
    return (
        f"nvarguscamerasrc sensor-id={rest} ! video/x-raw(memory:NVMM),width={width},height={height}{rate} ! "
        f"nvvidconv ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! {sink}"
    )
