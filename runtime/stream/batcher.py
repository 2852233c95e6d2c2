"""One device, one order: the newest frames of all cameras, encoded in one batch, decoded in shared chunks.

What is captured while a batch is processed waits in its slot, where newer frames replace it. So a frame that is
taken is at most one batch or one frame interval old, whichever is less, and its views are ready one batch later. A
result that a sink has not taken after two batches and a frame interval is dropped.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from diinn.runtime.errors import DiinnError, InputError, OutOfMemory
from diinn.runtime.geometry.bicubic import bicubic
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.view import View
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.noise.strength import NONE, Strength
from diinn.runtime.sources import Frame
from diinn.runtime.stream.camera_lane import CameraLane
from diinn.runtime.stream.deadline import Deadline, Load
from diinn.runtime.stream.result import BICUBIC, REDUCED, WHOLE, Result
from diinn.runtime.stream.sink_thread import Mailbox
from diinn.runtime.stream.statistics import Stats
from diinn.runtime.stream.zooms import Zooms
from diinn.runtime.super_resolver import Encoded, SuperResolver, encoded_at
from diinn.runtime.util.once import Once

log = logging.getLogger(__name__)
FADING = 0.98  # of the slowest batch, with each that is faster
IDLE_SECONDS = 0.2  # how long to wait for a frame before looking again


@dataclass(frozen=True, eq=False)
class _Job:
    """A frame in a batch.

    views: what is decoded, by name; whole: the views that were requested
    """

    lane: CameraLane
    frame: Frame
    quality: str
    views: Mapping[str, View]
    whole: Mapping[str, View]


_Computed = tuple[dict[str, tuple[Encoded, list[UInt8]]], float, float]


class Batcher:
    """Takes frames, encodes and decodes them and hands results on, until stopped or its sources have ended.

    announce: called with a frame, a view's name and the view when a camera's frames have a new size
    """

    def __init__(
        self,
        resolver: SuperResolver,
        lanes: Sequence[CameraLane],
        mailboxes: Sequence[Mailbox],
        stats: Stats,
        *,
        deadline: float | None = None,
        most: int | None = None,
        announce: Callable[[Frame, str, View], None] = lambda frame, name, view: None,
    ) -> None:
        self.resolver, self.lanes, self.mailboxes, self.stats = resolver, list(lanes), mailboxes, stats
        self.most, self._announce = most, announce
        self.deadline = Deadline(deadline, {lane.name: lane.weight for lane in lanes}) if deadline else None
        self._changed = threading.Condition()
        self._stop = False
        self._worked: set[str] = set()  # cameras with a result
        self._unfit: set[str] = set()  # cameras none of whose views could be made
        self._logged = Once()  # (camera, quality) that was lowered
        self._together = len(self.lanes) or 1  # frames encoded at once: fewer where the device's memory is short
        self._without: set[str] = set()  # cameras of the batch for which the device has no memory
        self._slowest = 0.0  # batch of late, seconds
        self._zooms = Zooms(resolver, self._put)

    def wake(self) -> None:
        """Something has changed: a frame has come, a sink has room, or views are others."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """End after the batch in work."""
        self._stop = True
        self.wake()

    def run(self) -> None:
        """Until stopped, all sources ended or ``most`` frames done.

        Raises what the device raises; a file that fails leaves the others alone.
        """
        while not self._stop and (self.most is None or self.stats.processed < self.most):
            taken = self._take()
            if wanted := [(lane, frame) for lane, frame in taken if self._wanted(lane, frame)]:
                self._process(wanted)
            while not self._stop and self._zooms.due(frames_wait=self._frames_wait()):
                self._zooms.step()
            if not taken and all(lane.source.ended for lane in self.lanes):
                break

    def _wanted(self, lane: CameraLane, frame: Frame) -> bool:
        """Whether anybody takes a view of a frame; otherwise it is not even encoded."""
        if lane.zooms or any(self._takers((lane.name, view)) for view in lane.specs):
            return True
        lane.look_at(frame)
        lane.unwanted += 1
        return False

    def _takers(self, key: tuple[str, str]) -> bool:
        return not self.mailboxes or any(mailbox.accepts(key) for mailbox in self.mailboxes)

    def _others(self, lane: CameraLane) -> bool:
        """Whether a live camera goes on without it."""
        return any(other.source.live and not other.source.ended for other in self.lanes if other is not lane)

    def _refuse(self, lane: CameraLane, error: DiinnError, *, nothing_left: bool = True) -> None:
        """A frame or view of a camera cannot be processed.

        Where there are other cameras it is noted at that camera alone; where none has worked yet and none may, the
        settings are wrong and the error is raised.

        nothing_left: whether no view of the camera's frame remains
        """
        if lane.source.live:
            if nothing_left and lane.name not in self._worked:
                self._unfit.add(lane.name)
            if not self._worked and len(self.lanes) == 1:
                raise error
            if not self._worked and all(other.name in self._unfit or other.source.ended for other in self.lanes):
                raise InputError(f"camera {lane.name}: {error}")
            lane.report(error)
            return
        if not self._others(lane):
            raise error
        lane.source.fail(error)

    def _take(self) -> list[tuple[CameraLane, Frame]]:
        """The frames of the next batch, after a short wait none."""
        until = time.monotonic() + IDLE_SECONDS
        with self._changed:
            while not (
                self._stop or self._frames_wait() or time.monotonic() > until or self._zooms.due(frames_wait=False)
            ):
                self._changed.wait(self._wait())
        if self._stop:
            return []
        now = time.monotonic()
        heaviest = max(lane.weight for lane in self.lanes)
        taken: list[tuple[CameraLane, Frame]] = []
        for lane in filter(self._ready, self.lanes):
            if self.most is not None and self.stats.processed + len(taken) >= self.most:
                break
            if lane.has_turn(heaviest) and (frame := lane.take(now)) is not None:
                taken.append((lane, frame))
        return taken

    def _frames_wait(self) -> bool:
        return any(map(self._ready, self.lanes))

    def _ready(self, lane: CameraLane) -> bool:
        if not lane.source.slot.full or time.monotonic() < lane.due:
            return False
        if lane.source.live:
            return True
        keys = [(lane.name, view) for view in lane.specs]
        return all(mailbox.has_room(key) for mailbox in self.mailboxes for key in keys if mailbox.accepts(key))

    def _wait(self) -> float:
        """Seconds until a camera or a zoom may be due."""
        due = [lane.due - time.monotonic() for lane in self.lanes if lane.source.slot.full]
        return max(0.001, min([IDLE_SECONDS, self._zooms.rest, *(wait for wait in due if wait > 0)]))

    def _process(self, taken: Sequence[tuple[CameraLane, Frame]]) -> None:
        began = time.perf_counter()
        jobs, loads, levels = self._planned(taken)
        decoded = [job for job in jobs if job.quality != BICUBIC and job.views]
        self._without.clear()
        ready, encode, decode = self._in_parts(decoded)
        jobs = [replace(j, quality=BICUBIC, views=j.whole) if j.lane.name in self._without else j for j in jobs]
        if self.deadline and (ready or not decoded):
            learnt = [load for load in loads if load.camera in ready]  # the network did not run for others
            self.deadline.learn(learnt, levels, encode, decode)
        done = []
        for job in jobs:
            if not job.whole or (job in decoded and job.lane.name not in ready):
                continue  # refused
            try:
                encoded, images = ready.get(job.lane.name) or (None, _bicubics(job.frame, job.views))
            except InputError as error:
                self._refuse(job.lane, error)
                continue
            strength = encoded.strength if encoded else NONE
            self._hand_on(job, dict(zip(job.views, images, strict=True)), strength, time.perf_counter() - began)
            done.append((job.lane.name, job.quality))
            self._worked.add(job.lane.name)
            self._unfit.discard(job.lane.name)
        total = time.perf_counter() - began
        if done:
            self.stats.batch(done, encode=encode * 1e3, decode=decode * 1e3, total=total * 1e3)
        self._slowest = max(total, FADING * self._slowest)
        self._zooms.earn(total)
        for job in jobs:
            encoded, _ = ready.get(job.lane.name, (None, None))
            self._zooms.offer(job.lane, job.frame, encoded)

    def _in_parts(self, jobs: Sequence[_Job]) -> _Computed:
        """``_computed`` of as many frames at once as the device has memory for.

        Where it runs out the batch is halved, once; cameras whose part does not fit even then get bicubic views this
        time. Frames of files are halved further, until each is alone.
        """
        found: dict[str, tuple[Encoded, list[UInt8]]] = {}
        encode = decode = 0.0
        waiting, halved = _parts(jobs, self._together), False
        while waiting:
            part, short = waiting.pop(0), ""
            try:
                made, encoding, decoding = self._computed(part)
            except OutOfMemory as error:
                short = str(error)  # the error itself holds what was being encoded
            if not short:
                found |= made
                encode, decode = encode + encoding, decode + decoding
            elif len(part) == 1 or (halved and all(job.lane.source.live for job in part)):
                for job in part:
                    self._do_without(job.lane, OutOfMemory(short))
            else:
                halved, self._together = True, -(-len(part) // 2)
                log.warning("%s; encoding at most %d at once from here on", short, self._together)
                waiting = _parts([job for other in (part, *waiting) for job in other], self._together)
        return found, encode, decode

    def _do_without(self, lane: CameraLane, error: OutOfMemory) -> None:
        """Bicubic views for a live camera, logged once; a file, whose every frame is wanted, ends."""
        if not lane.source.live:
            self._refuse(lane, error)
            return
        self._without.add(lane.name)
        if self._logged.first((lane.name, "memory")):
            log.warning("%s; views of %s are %s meanwhile, the statistics count them", error, lane.name, BICUBIC)

    def _computed(self, jobs: Sequence[_Job]) -> _Computed:
        """Encoded frames and images of each camera, and the seconds of encoding and decoding.

        Where the input of one is wrong, each is tried alone and that one refused.
        """
        if not jobs:
            return {}, 0.0, 0.0
        began = time.perf_counter()
        try:
            strengths = [job.lane.denoise.of(job.frame) for job in jobs]
            encoded = self.resolver.encode([job.frame.image for job in jobs], strengths)
            middle = time.perf_counter()
            asked = [(frame, list(job.views.values())) for frame, job in zip(encoded, jobs, strict=True)]
            pictures = self.resolver.decode_all(asked)
        except InputError as error:
            if len(jobs) == 1:
                self._refuse(jobs[0].lane, error)
                return {}, 0.0, 0.0
            alone = [self._computed([job]) for job in jobs]
            found = {name: value for part, _, _ in alone for name, value in part.items()}
            return found, sum(part[1] for part in alone), sum(part[2] for part in alone)
        end = time.perf_counter()
        middle = encoded_at(middle, encoded)
        values = zip(encoded, pictures, strict=True)
        return dict(zip((job.lane.name for job in jobs), values, strict=True)), middle - began, end - middle

    def _planned(self, taken: Sequence[tuple[CameraLane, Frame]]) -> tuple[list[_Job], list[Load], dict[str, str]]:
        """The views each frame gets: without a deadline all of them, whole."""
        parts = [(lane, frame, *self._views(lane, frame)) for lane, frame in taken]
        if not self.deadline:
            return [_Job(lane, frame, WHOLE, whole, whole) for lane, frame, whole, _ in parts], [], {}
        loads = []
        for lane, frame, whole, half in parts:
            width, height = frame.size
            queries, reduced = (sum(_queries(v, frame.size) for v in views.values()) for views in (whole, half))
            loads.append(Load(lane.name, width * height, queries, reduced))
        now = time.monotonic()
        levels = self.deadline.plan(loads, max(now - frame.arrived for _, frame in taken), now)
        jobs = []
        for lane, frame, whole, half in parts:
            quality = levels[lane.name]
            if quality != WHOLE and self._logged.first((lane.name, quality)):
                log.warning(
                    "a deadline of %.0f ms is short for %s here: views of %s are %s now, the statistics count them",
                    *(self.deadline.seconds * 1e3, self.resolver.bundle.name, lane.name, quality),
                )
            jobs.append(_Job(lane, frame, quality, half if quality == REDUCED else whole, whole))
        return jobs, loads, levels

    def _views(self, lane: CameraLane, frame: Frame) -> tuple[dict[str, View], dict[str, View]]:
        """A frame's views, and with a deadline the same at half their size; those that do not fit are left out."""
        new = lane.look_at(frame)
        whole: dict[str, View] = {}
        half: dict[str, View] = {}
        refused: list[InputError] = []
        for name, spec in lane.specs.items():
            if not (lane.zooms or self._takers((lane.name, name))):
                continue
            try:
                view = lane.view(spec, frame.size)
                if self.deadline:
                    half[name] = lane.view(spec, frame.size, 2)
            except InputError as error:
                refused.append(InputError(f"view {name}: {error}"))
                continue
            whole[name] = view
            if new:
                self._announce(frame, name, view)
        for trouble in refused:
            self._refuse(lane, trouble, nothing_left=not whole)
        lane.forget()
        return whole, half

    def _hand_on(self, job: _Job, images: Mapping[str, UInt8], strength: Strength, took: float) -> None:
        now = time.monotonic()
        bound = 2 * max(took, self._slowest) + job.lane.spacing if job.lane.source.live else math.inf
        for name, image in images.items():
            whole = job.whole[name]
            if job.quality == REDUCED:
                image = bicubic(image, View.resize(whole.dsize))
            expires = job.frame.arrived + bound
            held = job.lane.calibration
            self._put(Result(image, job.lane.name, name, job.frame, job.quality, whole, now, expires, strength, held))

    def _put(self, result: Result) -> None:
        for shared in (result.image, result.frame.image):  # by sinks, callbacks and viewers
            shared.setflags(write=False)
        for mailbox in self.mailboxes:
            if mailbox.accepts(result.key):
                mailbox.put(result)


def _parts(jobs: Sequence[_Job], most: int) -> list[Sequence[_Job]]:
    return [jobs[at : at + most] for at in range(0, len(jobs), most)]


def _bicubics(frame: Frame, views: Mapping[str, View]) -> list[UInt8]:
    return [bicubic(frame.image, view) for view in views.values()]


def _queries(view: View, size: Size) -> int:
    width, height = view.decoded_size(size)
    return width * height
