"""One open page: its panes, and what its messages do.

A viewer's messages (JSON): ``{"do": "watch", "pane", "camera", "view", "compare"}``, ``{"do": "close", "pane"}``,
``{"do": "zoom", "pane", "rect": [x, y, w, h] as shares of what the pane shows, "size": [w, h]}``,
``{"do": "whole", "pane"}``, ``{"do": "denoise", "pane", "value": "auto" or a noise level}``,
``{"do": "drawn", "pane"}``. Ours are text (JSON: ``{"state"}`` once a second,
``{"error"}``) and binary: the length of a JSON header (uint32, little-endian), the header, the JPEG of ours and, where
the pane compares, of bicubic. A pane gets its next picture when it has drawn the last one: the newest there is.
"""

from __future__ import annotations

import asyncio
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aiohttp import web
from diinn.runtime.errors import InputError
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.noise.strength import AUTO, parse_denoise
from diinn.runtime.sinks.preview.jpeg_pair import JpegPair
from diinn.runtime.stream.result import ZOOM, Result
from diinn.runtime.stream.sink_thread import Key

if TYPE_CHECKING:
    from diinn.runtime.stream.sink import LiveStream

MOST_PANES = 64  # of one viewer
MOST_ZOOMS = 4  # of one viewer
ZOOM_PIXELS = 1280 * 960
LEAST_SHARE = 1e-3  # of a view's side that can be zoomed into
# What a message that is not one of ours may raise.
NONSENSE = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@dataclass
class Pane:
    """What one pane of a viewer shows.

    spec, zoom: of its zoom, and its name; ready: whether it has drawn the last picture; sent: that picture
    """

    camera: str
    view: str
    compare: bool
    spec: ViewSpec | None = None
    zoom: str = ""
    ready: bool = True
    sent: JpegPair | None = None

    @property
    def key(self) -> Key:
        return self.camera, self.zoom or self.view


@dataclass(eq=False)
class Viewer:
    """One open page; ``state`` is to be sent."""

    stream: LiveStream
    socket: web.WebSocketResponse
    panes: dict[str, Pane] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    state: str = ""

    def do(self, text: str) -> None:
        """Carry out a message; it may take a moment, since a view may be made.

        Raises InputError for what cannot be done, one of ``NONSENSE`` for what is no message.
        """
        message = json.loads(text)
        actions: dict[str, Callable[[str, dict[str, Any]], None]] = {
            "watch": self._watch,
            "close": self._close,
            "zoom": self._zoom,
            "whole": lambda name, _: self._unzoom(self.panes[name]),
            "denoise": self._denoise,
            "drawn": lambda name, _: setattr(self.panes[name], "ready", True),
        }
        actions[message["do"]](str(message["pane"]), message)

    def _watch(self, name: str, message: dict[str, Any]) -> None:
        camera, view, compare = str(message["camera"]), str(message["view"]), bool(message["compare"])
        old = self.panes.get(name)
        if old is not None and (old.camera, old.view) == (camera, view):
            old.sent = None if compare and not old.compare else old.sent  # the same frame again, both ways
            old.compare = compare
            return
        if old is not None:
            self._unzoom(old)
        elif len(self.panes) >= MOST_PANES:
            raise InputError(f"a viewer has at most {MOST_PANES} panes")
        self.panes[name] = Pane(camera, view, compare)

    def _close(self, name: str, message: dict[str, Any]) -> None:
        self._unzoom(self.panes.pop(name))

    def _zoom(self, name: str, message: dict[str, Any]) -> None:
        pane, part, size = self.panes[name], _rect(message["rect"]), _size(message["size"])
        if not pane.zoom and sum(bool(other.zoom) for other in self.panes.values()) >= MOST_ZOOMS:
            raise InputError(f"a viewer looks closer at {MOST_ZOOMS} views at most: go back to the whole of one first")
        spec = (pane.spec or self.stream.lane(pane.camera).specs[pane.view]).cropped(part, size)
        zoom = self.stream.zoom(pane.camera, spec)
        self._unzoom(pane)
        pane.zoom, pane.spec = zoom, spec

    def _denoise(self, name: str, message: dict[str, Any]) -> None:
        """Set a camera's level; its compression stays as it was, since the page has one slider."""
        camera, wanted = self.panes[name].camera, parse_denoise(message["value"])
        if wanted != AUTO:
            wanted = replace(wanted, compression=self.stream.lane(camera).denoise.strength.compression)
        self.stream.set_denoise(camera, wanted)

    def _unzoom(self, pane: Pane) -> None:
        if pane.zoom:
            self.stream.unzoom(pane.camera, pane.zoom)
        pane.zoom, pane.spec, pane.sent = "", None, None

    def leave(self) -> None:
        """The page was closed: end its zooms."""
        for pane in self.panes.values():
            self._unzoom(pane)

    def troubles(self) -> list[str]:
        """What went wrong with its zooms, each of which ends."""
        found = []
        for pane in self.panes.values():
            trouble = self.stream.lane(pane.camera).zoom_troubles.get(pane.zoom) if pane.zoom else None
            if trouble is not None:
                self._unzoom(pane)
                found.append(trouble)
        return found


def packed(name: str, pane: Pane, result: Result, jpegs: list[bytes]) -> bytes:
    """A picture as it goes to a pane."""
    header = {
        "pane": name,
        "camera": result.camera,
        "view": pane.view,
        "still": result.view,
        "zoomed": result.view.startswith(ZOOM),
        "sequence": result.sequence,
        "age": round(result.age * 1e3, 1),
        "quality": result.quality,
        "noise": round(result.strength.noise, 1),
        "size": list(result.view_geometry.dsize),
        "frame": list(result.frame.size),
        "lengths": [len(jpeg) for jpeg in jpegs],
    }
    text = json.dumps(header).encode()
    return b"".join([struct.pack("<I", len(text)), text, *jpegs])


def _rect(values: Any) -> tuple[float, float, float, float]:
    x, y, w, h = (float(v) for v in values)
    if not all(map(math.isfinite, (x, y, w, h))):
        raise InputError("a rectangle has four numbers from 0 to 1")
    x, y = min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
    w, h = min(w, 1 - x), min(h, 1 - y)
    if min(w, h) < LEAST_SHARE:
        raise InputError("this rectangle is too small: drag a larger one")
    return x, y, w, h


def _size(values: Any) -> tuple[int, int]:
    width, height = (int(v) for v in values)
    if min(width, height) < 16:
        raise InputError("a pane this small cannot show a part of the picture: make the window larger")
    factor = min(1.0, math.sqrt(ZOOM_PIXELS / (width * height)))
    return max(1, int(width * factor)), max(1, int(height * factor))
