"""One device, one order: the newest frames of all cameras, encoded in one batch, decoded in shared chunks.

Whatever is captured while a batch is processed waits in its slot, where newer frames replace it. So a frame that is
taken is at most one batch or one frame interval old, whichever is less, and its views are ready one batch later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from diinn.runtime.bicubic import bicubic
from diinn.runtime.calibration import Calibration
from diinn.runtime.errors import InputError
from diinn.runtime.grid import Size
from diinn.runtime.images import UInt8
from diinn.runtime.resolver import Encoded, SuperResolver
from diinn.runtime.sources import Frame, Source
from diinn.runtime.stream.deadline import Deadline, Load
from diinn.runtime.stream.outlet import Mailbox
from diinn.runtime.stream.result import BICUBIC, REDUCED, WHOLE, Result
from diinn.runtime.stream.stats import Stats
from diinn.runtime.view import View
from diinn.runtime.view_spec import ViewSpec

log = logging.getLogger(__name__)
ZOOM_SECONDS = 1.0  # between two views for a viewer, where cameras leave no time
IDLE_SECONDS = 0.2  # how long to wait for a frame before looking again


class Lane:
    """One camera on its way through the batcher.

    specs: its views by name; zooms: those that viewers ask for; both are replaced, never changed
    weight: its share when there is not time for all
    interval: seconds between two of its frames at least; calibration: the camera's own
    size: (width, height) of its last frame; trouble: what is wrong with its views
    """

    def __init__(
        self,
        source: Source,
        specs: Mapping[str, ViewSpec],
        *,
        weight: float = 1.0,
        max_fps: float | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.source, self.specs, self.weight, self.calibration = source, dict(specs), weight, calibration
        self.interval = 1 / max_fps if max_fps else 0.0
        self.zooms: dict[str, ViewSpec] = {}
        self._current = self._current_zooms = self.zooms
        self.size: Size | None = None
        self.trouble = ""
        self._views: dict[tuple[str, int], tuple[ViewSpec, Size, View | InputError]] = {}
        self.due, self._credit, self._replaced = 0.0, 0.0, 0  # due: of time.monotonic

    @property
    def name(self) -> str:
        return self.source.name

    def may_go(self, heaviest: float) -> bool:
        """Whether its frame is for this batch and not passed over.

        A camera of less weight is passed over now and then, but only while newer frames keep replacing its own: time
        is short, and what it loses it would have lost anyway."""
        overrun = self.source.slot.replaced > self._replaced
        self._replaced = self.source.slot.replaced
        self._credit = min(1.0, self._credit + self.weight / heaviest)
        if overrun and self._credit < 1 - 1e-9:
            return False
        self._credit = max(0.0, self._credit - 1)
        return True

    def take(self, now: float) -> Frame | None:
        frame = self.source.slot.take()
        if frame is not None:
            self.due = max(self.due + self.interval, now + self.interval / 2)
            self._current, self._current_zooms = self.specs, self.zooms
        return frame

    def views(self, size: Size, reduce: int, *, zooms: bool = False) -> dict[str, View]:
        """The views of a frame of ``size`` that was taken, or the viewers'; InputError at the first frame for one that
        does not fit, later on such a view is left out."""
        first = self.size is None
        self.trouble = self.trouble if zooms else ""
        found = {}
        for name, spec in (self._current_zooms if zooms else self._current).items():
            known = self._views.get((name, reduce))
            if known is None or known[0] is not spec or known[1] != size:
                known = (spec, size, self._view(spec, size, reduce))
                self._views[name, reduce] = known
            view = known[2]
            if isinstance(view, View):
                found[name] = view
            elif first:
                raise view
            else:
                self.trouble = f"view {name}: {view}"
        for key in [key for key in self._views if key[0] not in self._current and key[0] not in self._current_zooms]:
            del self._views[key]
        self.size = size
        return found

    def _view(self, spec: ViewSpec, size: Size, reduce: int) -> View | InputError:
        try:
            return spec.view(size, self.calibration, reduce=reduce)
        except InputError as error:
            if self.size is not None:
                log.warning("camera %s: %s", self.name, error)
            return error


@dataclass(frozen=True)
class _Job:
    """A frame in a batch. views: what is decoded, by name; whole: what was asked for."""

    lane: Lane
    frame: Frame
    quality: str
    views: Mapping[str, View]
    whole: Mapping[str, View]


class Batcher:
    """Takes, encodes, decodes and hands on, until it is told to stop or its sources have ended.

    announce: called with a frame, a view's name and the view when a camera's frames have a new size
    """

    def __init__(
        self,
        resolver: SuperResolver,
        lanes: Sequence[Lane],
        outlets: Sequence[Mailbox],
        stats: Stats,
        *,
        deadline: float | None = None,
        most: int | None = None,
        announce: Callable[[Frame, str, View], None] = lambda frame, name, view: None,
    ) -> None:
        self.resolver, self.lanes, self.outlets, self.stats = resolver, list(lanes), outlets, stats
        self.most, self._announce = most, announce
        self.deadline = Deadline(deadline, {lane.name: lane.weight for lane in lanes}) if deadline else None
        self._changed = threading.Condition()
        self._stop = False
        self._next_zoom = 0.0

    def wake(self) -> None:
        """Something has changed: a frame has come, a sink has room, views are others."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """End after the batch in work."""
        self._stop = True
        self.wake()

    def run(self) -> None:
        """Until stopped, all sources ended or ``most`` frames done. Raises what a file or the device raises."""
        while not self._stop:
            taken = self._take()
            if taken:
                self._process(taken)
            elif all(lane.source.ended for lane in self.lanes):
                break
            for lane in self.lanes:
                if lane.source.failure is not None and not lane.source.live and not lane.source.slot.full:
                    raise lane.source.failure

    def _take(self) -> list[tuple[Lane, Frame]]:
        """The frames of the next batch, after a short wait none."""
        with self._changed:
            self._changed.wait_for(lambda: self._stop or any(map(self._ready, self.lanes)), self._wait())
        if self._stop:
            return []
        now = time.monotonic()
        heaviest = max(lane.weight for lane in self.lanes)
        taken: list[tuple[Lane, Frame]] = []
        for lane in filter(self._ready, self.lanes):
            if self.most is not None and self.stats.processed + len(taken) >= self.most:
                self._stop = True
                break
            if lane.may_go(heaviest) and (frame := lane.take(now)) is not None:
                taken.append((lane, frame))
        return taken

    def _ready(self, lane: Lane) -> bool:
        if not lane.source.slot.full or time.monotonic() < lane.due:
            return False
        if lane.source.live:
            return True
        keys = [(lane.name, view) for view in lane.specs]
        return all(outlet.has_room(key) for outlet in self.outlets for key in keys if outlet.wants(key))

    def _wait(self) -> float:
        """Seconds until somebody may be due."""
        due = [lane.due - time.monotonic() for lane in self.lanes if lane.source.slot.full]
        return max(0.001, min([IDLE_SECONDS, *(wait for wait in due if wait > 0)]))

    def _process(self, taken: Sequence[tuple[Lane, Frame]]) -> None:
        jobs, loads, levels = self._planned(taken)
        began = time.perf_counter()
        decoded = [job for job in jobs if job.quality != BICUBIC and job.views]
        encoded = self.resolver.encode([job.frame.image for job in decoded])
        middle = time.perf_counter()
        pictures = self.resolver.decode_all(
            [(frame, list(job.views.values())) for frame, job in zip(encoded, decoded, strict=True)]
        )
        end = time.perf_counter()
        if self.deadline:
            self.deadline.learn(loads, levels, middle - began, end - middle)
        ready = dict(zip((job.lane.name for job in decoded), zip(encoded, pictures, strict=True), strict=True))
        for job in jobs:
            images = ready[job.lane.name][1] if job.lane.name in ready else _bicubics(job.frame, job.views)
            self._hand_on(job, dict(zip(job.views, images, strict=True)))
        self.stats.batch(
            [(job.lane.name, job.quality) for job in jobs],
            encode=(middle - began) * 1e3,
            decode=(end - middle) * 1e3,
            total=(time.perf_counter() - began) * 1e3,
        )
        self._zoom(jobs, {name: frame for name, (frame, _) in ready.items()})

    def _zoom(self, jobs: Sequence[_Job], encoded: Mapping[str, Encoded]) -> None:
        """What viewers want to see closer: of the time that cameras leave, and once a second in any case."""
        now = time.monotonic()
        jobs = [job for job in jobs if job.lane.zooms]
        if not jobs or (now < self._next_zoom and any(lane.source.slot.full for lane in self.lanes)):
            return
        self._next_zoom = now + ZOOM_SECONDS
        for job in jobs:
            views = job.lane.views(job.frame.size, 1, zooms=True)
            if job.lane.name in encoded:
                images = self.resolver.decode(encoded[job.lane.name], list(views.values()))
            else:
                images = _bicubics(job.frame, views)
            quality = WHOLE if job.lane.name in encoded else BICUBIC
            self._hand_on(
                replace(job, quality=quality, views=views, whole=views), dict(zip(views, images, strict=True))
            )

    def _planned(self, taken: Sequence[tuple[Lane, Frame]]) -> tuple[list[_Job], list[Load], dict[str, str]]:
        """What each frame gets, and without a deadline all it asks for."""
        wholes = []
        for lane, frame in taken:
            new = lane.size != frame.size
            whole = lane.views(frame.size, 1)
            if new:
                for name in filter(lane.specs.__contains__, whole):
                    self._announce(frame, name, whole[name])
            wholes.append(whole)
        if not self.deadline:
            jobs = [_Job(lane, frame, WHOLE, whole, whole) for (lane, frame), whole in zip(taken, wholes, strict=True)]
            return jobs, [], {}
        jobs, loads = [], []
        halves = [lane.views(frame.size, 2) for lane, frame in taken]
        for (lane, frame), whole, half in zip(taken, wholes, halves, strict=True):
            width, height = frame.size
            queries, reduced = (sum(_queries(v, frame.size) for v in views.values()) for views in (whole, half))
            loads.append(Load(lane.name, width * height, queries, reduced))
        now = time.monotonic()
        levels = self.deadline.plan(loads, max(now - frame.arrived for _, frame in taken), now)
        for (lane, frame), whole, half in zip(taken, wholes, halves, strict=True):
            quality = levels[lane.name]
            jobs.append(_Job(lane, frame, quality, half if quality == REDUCED else whole, whole))
        return jobs, loads, levels

    def _hand_on(self, job: _Job, images: Mapping[str, UInt8]) -> None:
        now = time.monotonic()
        for name, image in images.items():
            whole = job.whole[name]
            if job.quality == REDUCED:
                image = bicubic(image, View.resize(whole.dsize))
            result = Result(image, job.lane.name, name, job.frame, job.quality, whole, now)
            for outlet in self.outlets:
                if outlet.wants(result.key):
                    outlet.put(result)


def _bicubics(frame: Frame, views: Mapping[str, View]) -> list[UInt8]:
    return [bicubic(frame.image, view) for view in views.values()]


def _queries(view: View, size: Size) -> int:
    width, height = view.decoded_size(size)
    return width * height
