"""Views that viewers zoom into: decoded between batches, in steps so small that no camera waits for them."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from diinn.runtime.errors import InputError, OutOfMemory
from diinn.runtime.geometry.bicubic import bicubic
from diinn.runtime.geometry.view import View
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.noise.strength import NONE, Strength
from diinn.runtime.sources import Frame
from diinn.runtime.stream.camera_lane import CameraLane
from diinn.runtime.stream.result import BICUBIC, WHOLE, Result
from diinn.runtime.super_resolver import Encoded, SuperResolver
from diinn.runtime.util.once import Once

log = logging.getLogger(__name__)
LEAST_SHARE = 0.1  # of the batches' time, where cameras leave none

Key = tuple[str, str]  # (camera, name of the zoom)


@dataclass(frozen=True, eq=False)
class _Work:
    """A picture in the making.

    strength: what the network was given beside its frame; steps: gives None after each step, then the picture
    """

    lane: CameraLane
    name: str
    spec: ViewSpec
    frame: Frame
    quality: str
    view: View
    strength: Strength
    steps: Iterator[UInt8 | None]


class Zooms:
    """Decodes the zooms of all cameras' lanes, the one shown longest ago first, each from its camera's newest frame.

    They get half of the time in which no frame waits, and a tenth of the batches' time in any case.
    """

    def __init__(self, resolver: SuperResolver, hand_on: Callable[[Result], None]) -> None:
        self._resolver, self._hand_on = resolver, hand_on
        self._newest: dict[str, tuple[CameraLane, Frame, Encoded | None]] = {}  # by camera
        self._shown: dict[Key, tuple[float, Frame]] = {}  # when, and of which frame
        self._work: _Work | None = None
        self._logged = Once()  # pictures for which memory was short
        self._credit = self._resting = 0.0  # seconds that are due; time.monotonic

    def offer(self, lane: CameraLane, frame: Frame, encoded: Encoded | None) -> None:
        """A camera's newest frame; not encoded where a deadline left it bicubic."""
        self._newest.pop(lane.name, None)
        if lane.zooms:
            self._newest[lane.name] = lane, frame, encoded

    def earn(self, seconds: float) -> None:
        """A batch took so long. Credit is not saved up: cameras would wait when it is spent."""
        self._credit = min(self._credit, 0.0) + LEAST_SHARE * seconds

    @property
    def rest(self) -> float:
        """Seconds until a step is due while no frame waits; infinite if there is nothing to do."""
        return max(0.0, self._resting - time.monotonic()) if self._work or self._waiting() else math.inf

    def due(self, *, frames_wait: bool) -> bool:
        """Whether it is time for a step."""
        rest = self.rest
        return rest < math.inf and self._credit > 0 if frames_wait else not rest

    def step(self) -> None:
        """Decode a little of a picture."""
        began = time.monotonic()
        self._work = self._work or self._next()
        if self._work is not None:
            self._go_on(self._work)
        took = time.monotonic() - began
        self._credit = max(self._credit - took, -took)
        self._resting = began + 2 * took

    def _waiting(self) -> list[tuple[float, str, str]]:
        """(when it was shown, camera, name) of those with a newer frame."""
        found = []
        for camera in [name for name, (lane, _, _) in self._newest.items() if not lane.zooms]:
            del self._newest[camera]  # a camera that has stalled since must not keep its maps
        for camera, (lane, frame, _) in self._newest.items():
            for name in lane.zooms:
                at, last = self._shown.get((camera, name), (0.0, None))
                if last is not frame and name not in lane.zoom_troubles:
                    found.append((at, camera, name))
        return found

    def _next(self) -> _Work | None:
        waiting = self._waiting()
        if not waiting:
            return None
        _, camera, name = min(waiting)
        lane, frame, encoded = self._newest[camera]
        spec = lane.zooms.get(name)
        if spec is None:  # its viewer has just gone
            return None
        try:
            view = lane.view(spec, frame.size)
            if encoded is None:
                return _Work(lane, name, spec, frame, BICUBIC, view, NONE, iter([bicubic(frame.image, view)]))
            steps = self._resolver.decode_in_steps(encoded, view)
            return _Work(lane, name, spec, frame, WHOLE, view, encoded.strength, steps)
        except InputError as error:  # it concerns the viewer, who gets the message
            lane.zoom_troubles[name] = str(error)
            return None

    def _go_on(self, work: _Work) -> None:
        if work.lane.zooms.get(work.name) is not work.spec:
            self._work = None
            return
        try:
            image = next(work.steps)
        except InputError as error:
            work.lane.zoom_troubles[work.name] = str(error)
            self._work = None
            return
        except OutOfMemory as error:  # the next frame's may do
            key = work.lane.name, work.name
            if self._logged.first(key):
                log.warning("%s: a viewer's picture of %s is left out", error, work.lane.name)
            self._work = None
            self._shown[key] = time.monotonic(), work.frame
            return
        if image is None:
            return
        self._work = None
        now = time.monotonic()
        here = {(camera, name) for camera, (lane, _, _) in self._newest.items() for name in lane.zooms}
        self._shown = {key: value for key, value in self._shown.items() if key in here}
        self._shown[work.lane.name, work.name] = now, work.frame
        self._hand_on(
            Result(image, work.lane.name, work.name, work.frame, work.quality, work.view, now, strength=work.strength)
        )
