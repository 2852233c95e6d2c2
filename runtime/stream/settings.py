"""The settings of each camera of a stream, by arguments or by a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diinn.runtime.errors import InputError, unknown
from diinn.runtime.geometry.calibration import Calibration
from diinn.runtime.geometry.view_spec import ViewSpec, parse_size
from diinn.runtime.noise.strength import Denoise, parse_denoise
from diinn.runtime.sources import CaptureOptions, Source, open_source, public, same_device, scheme_of
from diinn.runtime.stream.result import ZOOM
from diinn.runtime.util.file_names import as_file, local, readable
from diinn.runtime.util.text import redacted

DEFAULT_SCALE = 2.0
KEYS = (
    "name",
    "uri",
    "size",
    "rate",
    "codec",
    "flip",
    "loop",
    "weight",
    "max_fps",
    "calibration",
    "views",
    "denoise",
    "noise",
)
LARGEST_WEIGHT = 1e6
ELSEWHERE = {  # keys that look right in a block, and what to write instead
    "out_size": 'write views: {whole: "full:640x480"}',
    "roi": 'write views: {part: "roi:40,30,80,60:320x240"}',
    "input_size": "write size: 320x240",
    "retries": "give --retries, which holds for all cameras",
    "stall_timeout": "give --stall-timeout, which holds for all cameras",
}


@dataclass(frozen=True)
class CameraSettings:
    """One camera of a stream.

    Attributes:
        uri: ``0``, ``/dev/video0``, ``csi://0``, ``gst://PIPELINE``, ``rtsp://…``, ``http://…``, ``demo``; a file, a
            folder or a glob of images, or a video.
        name: Its name in files, statistics and the preview, by default the URI.
        capture: How the source is opened.
        views: What is made of each frame, by name, as ``ViewSpec`` or its text form.
        weight: Its share when there is not time for all, above 0 and up to a million.
        max_fps: Frames a second processed at most.
        calibration: For rectified and virtual views.
        denoise: What the network is given beside its frames: "auto", a noise level in grey levels or a ``Strength``;
            None for "auto" where it is a camera or video, else 0.

    Raises:
        InputError: A value is out of its range, or a view cannot be parsed.
    """

    uri: str = field(repr=False)  # with what may be secret
    name: str | None = None
    capture: CaptureOptions = field(default_factory=CaptureOptions)
    views: Mapping[str, ViewSpec | str] = field(default_factory=lambda: {"full": ViewSpec(scale=DEFAULT_SCALE)})
    weight: float = 1.0
    max_fps: float | None = None
    calibration: Calibration | None = None
    denoise: Denoise | None = None

    def __post_init__(self) -> None:
        who = self.name or public(self.uri) or "of the options"
        if not 0 < self.weight <= LARGEST_WEIGHT:
            raise InputError(f"camera {who}: weight {self.weight:g} is not above 0 and up to {LARGEST_WEIGHT:g}")
        if self.max_fps is not None and not 0 < self.max_fps <= 1000:
            raise InputError(f"camera {who}: {self.max_fps:g} frames/s is not above 0 and up to 1000")
        if not isinstance(self.views, Mapping) or not all(isinstance(v, str | ViewSpec) for v in self.views.values()):
            raise InputError(f"camera {who}: views are names with a view each, such as {{'whole': 'full:640x480'}}")
        if not self.views:
            raise InputError(f"camera {who} has no views: give one, such as full:640x480")
        for name in self.views:
            if not name or name.startswith(ZOOM) or "/" in name:
                raise InputError(f"camera {who}: {name!r} is no name for a view: use letters, digits, - and _")
        if self.denoise is not None:
            try:
                parse_denoise(self.denoise)
            except InputError as error:
                raise InputError(f"camera {who}: {error}") from None
        self.specs  # noqa: B018  raises now for text that cannot be parsed

    @property
    def specs(self) -> dict[str, ViewSpec]:
        """The views by name, parsed."""
        return {name: ViewSpec.parse(view) if isinstance(view, str) else view for name, view in self.views.items()}


def load(path: str | Path, base: CameraSettings) -> list[CameraSettings]:
    """The cameras of a YAML file, a list under ``cameras``; what a block leaves out is as in ``base``.

    Paths in it are relative to it. InputError names the block and the nearest valid key.
    """
    from diinn.runtime.util import yaml_file

    path = Path(path)
    document = yaml_file.read(path, "cameras")
    if not isinstance(document, dict) or not isinstance(document.get("cameras"), list) or not document["cameras"]:
        raise InputError(f"{str(path)!r} has no cameras: write 'cameras:' and a block for each, '- uri: 0'")
    for key in document:
        if key != "cameras":
            raise InputError(f"{str(path)!r}: " + unknown("key", key, ("cameras",)))
    cameras = []
    for number, block in enumerate(document["cameras"], 1):
        try:
            cameras.append(_camera(block, base, path.parent))
        except InputError as error:
            raise InputError(f"{str(path)!r}, camera {number}: {error}") from None
    for name, count in Counter(camera.name for camera in cameras if camera.name).items():
        if count > 1:
            raise InputError(f"{str(path)!r}: two cameras are called {name!r}: give them different names")
    return cameras


def _camera(block: Any, base: CameraSettings, folder: Path) -> CameraSettings:
    if not isinstance(block, dict) or block.get("uri") is None:
        raise InputError("it has no uri: write 'uri: 0', 'uri: rtsp://…' or 'uri: demo'")
    for key in block:
        elsewhere = ELSEWHERE.get(str(key).replace("-", "_"))
        if elsewhere is not None:
            raise InputError(f"{key!r} is none of its keys: {elsewhere}")
        if key not in KEYS:
            raise InputError(unknown("key", key, KEYS))
    capture, given = base.capture, {key: value for key, value in block.items() if value is not None}
    if "size" in given:
        capture = replace(capture, size=parse_size(str(given["size"]), "size", "640x480"))
    if "rate" in given:
        capture = replace(capture, rate=_number(given["rate"], "rate"))
    if "codec" in given:
        capture = replace(capture, codec=str(given["codec"]))
    if "flip" in given:
        capture = replace(capture, flip=str(given["flip"]))
    if "noise" in given:
        capture = replace(capture, noise=_number(given["noise"], "noise"))
    if "loop" in given:
        if not isinstance(given["loop"], bool):
            raise InputError(f"loop {given['loop']!r} is neither true nor false")
        capture = replace(capture, loop=given["loop"])
    uri = as_file(str(given["uri"]))
    uri = local(uri)
    scheme = scheme_of(uri)
    if scheme == "file":
        uri = f"file://{folder / uri.partition('://')[2]}"
    elif (
        not scheme and not uri.isdigit() and not re.match("[a-z]+:/", uri, re.IGNORECASE)
    ):  # a path, with colons or not
        uri = str(folder / uri)
    out = replace(base, uri=uri, capture=capture, name=str(given["name"]) if "name" in given else None)
    if "calibration" in given:
        out = replace(out, calibration=Calibration.load(folder / as_file(str(given["calibration"]))))
    if "views" in given:
        if not isinstance(given["views"], dict):
            raise InputError("views are names with a view each: write 'whole: full:640x480' below 'views:'")
        out = replace(out, views={str(k): ViewSpec.parse(as_file(str(v)), folder) for k, v in given["views"].items()})
    if "denoise" in given:
        value = given["denoise"]
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        out = replace(out, denoise=parse_denoise(text))
    if "weight" in given:
        out = replace(out, weight=_number(given["weight"], "weight"))
    if "max_fps" in given:
        out = replace(out, max_fps=_number(given["max_fps"], "max_fps"))
    return out


def _number(value: Any, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e12:
        raise InputError(f"{key} {redacted(str(value))[:30]!r} is not a number")
    return float(value)


def check_apart(uris: Sequence[str]) -> None:
    """InputError where two cameras are one device."""
    seen: dict[str, str] = {}
    for uri in uris:
        device = same_device(uri)
        if device is not None and device in seen:
            both = uri if seen[device] == uri else f"{seen[device]} and {uri}"
            raise InputError(f"two cameras are one device, {both}: a device can be opened once; give it several --view")
        if device is not None:
            seen[device] = uri


def open_sources(settings: Sequence[CameraSettings]) -> list[Source]:
    """The sources of several cameras, with different names; those opened are closed when one fails."""
    check_apart([s.uri for s in settings])
    opened: list[Source] = []
    with ExitStack() as failing:
        for s in settings:
            opened.append(open_source(s.uri, s.capture))
            failing.callback(opened[-1].close)
            opened[-1].name = readable(s.name) if s.name else opened[-1].name
        name_apart(opened)
        failing.pop_all()
    return opened


def name_apart(opened: Sequence[Source]) -> None:
    """Number sources that bear the same name, so that their files and statistics stay apart."""
    taken: set[str] = set()
    numbers: Counter[str] = Counter()
    for source in opened:
        wanted = source.name
        while source.name in taken:
            numbers[wanted] += 1
            source.name = f"{wanted}-{numbers[wanted] + 1}"
        taken.add(source.name)
