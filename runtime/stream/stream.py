"""``Stream``: cameras in, views out, live."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from diinn.runtime.errors import DiinnError, InputError, SourceError, unknown
from diinn.runtime.geometry.view import View
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.noise.strength import Denoise
from diinn.runtime.sources import Frame, Source
from diinn.runtime.sources.base import FAILED, RETRYING
from diinn.runtime.stream.batcher import Batcher
from diinn.runtime.stream.camera_denoise import CameraDenoise
from diinn.runtime.stream.camera_lane import CameraLane, Made
from diinn.runtime.stream.result import ZOOM, Result
from diinn.runtime.stream.settings import CameraSettings, check_apart, open_sources
from diinn.runtime.stream.shutdown import ShutdownDeadline, join
from diinn.runtime.stream.sink import Sink
from diinn.runtime.stream.sink_thread import Key, Mailbox, SinkThread
from diinn.runtime.stream.statistics import Stats
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util.once import Once

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)
TICK_SECONDS = 0.05
INTERRUPTED_SECONDS = 0.8  # for the batch in work, once interrupted
LIVE_SECONDS = 30.0  # for a batch, and for all sinks, where nothing but live cameras would be lost


class Stream:
    """Several sources through one resolver: newest frames of cameras, every frame of files.

    ``for result in Stream(...)`` gives the newest view of each camera and view in turn; sinks and ``on_result`` get
    them in threads of their own. A stream runs once: one that was closed cannot be started again.

    Example:
        >>> for result in Stream("demo"):
        ...     cv2.imwrite(f"{result.sequence}.png", result.image)

    Attributes:
        resolver: What encodes and decodes.
        sources: The cameras and files.
        stats: Counts and times; ``snapshot`` gives them as plain values.
    """

    def __init__(
        self,
        cameras: str | CameraSettings | Sequence[str | CameraSettings],
        resolver: SuperResolver | str = "small",
        *,
        sinks: Sequence[Sink | tuple[Sink, frozenset[Key] | None]] = (),
        on_result: Callable[[Result], None] | None = None,
        deadline_ms: float | None = None,
        max_frames: int | None = None,
        wait_for_cameras: bool = True,
        announce: Callable[[Frame, str, View], None] = lambda frame, name, view: None,
        sources: Sequence[Source] | None = None,
    ) -> None:
        """Nothing is captured before ``start``, iteration or ``run``.

        Args:
            cameras: URIs (whole frames, at twice their size) or settings, one or several.
            resolver: One of the caller's, which stays open, or a model to open.
            sinks: Sinks, or pairs of a sink and the (camera, view) names it is for.
            on_result: Called with each ``Result``, in a thread of its own; the newest while it is busy.
            deadline_ms: From a frame's arrival to its views, milliseconds; what is given up for it is in
                ``Result.quality``.
            max_frames: Frames to process, of all cameras together.
            wait_for_cameras: Wait for cameras that cannot be opened even where none can; otherwise that is a
                SourceError.
            announce: Called with a frame, a view's name and the view when a camera's frames have a new size.
            sources: Opened already, one for each camera.

        Raises:
            InputError: A setting is wrong, a file cannot be read, or the model cannot be opened.
        """
        if isinstance(cameras, str | CameraSettings):
            cameras = [cameras]
        if not cameras:
            raise InputError("no camera: give at least one, such as 'demo'")
        if deadline_ms is not None and not isinstance(deadline_ms, int | float):
            raise InputError(f"a deadline of {deadline_ms!r} is not a number of milliseconds")
        if deadline_ms is not None and not 0 < deadline_ms <= 60_000:
            raise InputError(f"a deadline of {deadline_ms:g} ms is not above 0 and up to a minute")
        settings = [CameraSettings(camera) if isinstance(camera, str) else camera for camera in cameras]
        check_apart([s.uri for s in settings])
        self._own = not isinstance(resolver, SuperResolver)
        self.resolver = resolver if isinstance(resolver, SuperResolver) else SuperResolver.open(resolver)
        try:
            self.sources = list(sources) if sources is not None else open_sources(settings)
            dials = [
                CameraDenoise(s.denoise, source, self.resolver)
                for source, s in zip(self.sources, settings, strict=True)
            ]
        except BaseException:
            if self._own:
                self.resolver.close()
            raise
        self.lanes = [
            CameraLane(source, s.specs, dial, weight=s.weight, max_fps=s.max_fps, calibration=s.calibration)
            for source, s, dial in zip(self.sources, settings, dials, strict=True)
        ]
        self.stats = Stats()
        self.outlets = [SinkThread(*(sink if isinstance(sink, tuple) else (sink, None))) for sink in sinks]
        if on_result is not None:
            self.outlets.append(SinkThread(_Callback(on_result)))
        self._mailboxes: list[Mailbox] = list(self.outlets)
        self._batcher = Batcher(
            self.resolver,
            self.lanes,
            self._mailboxes,
            self.stats,
            deadline=deadline_ms / 1e3 if deadline_ms else None,
            most=max_frames,
            announce=announce,
        )
        self._wait_for_cameras = wait_for_cameras
        self._error: BaseException | None = None
        self._zooms = 0
        self.logged = Once()  # of cameras and sinks
        self._views_lock = threading.Lock()
        self._shown = threading.Event()  # something for a window has come
        self._closing, self._closed = threading.Lock(), threading.Event()
        self._runner: threading.Thread | None = None  # in which ``run`` waits
        self._closer: threading.Thread | None = None
        self._leaving = self._interrupted = False
        self._state = "new"  # then "running", then "closed"
        self._thread = threading.Thread(target=self._batch, name="diinn-batcher", daemon=True)

    def start(self) -> None:
        """Begin to capture and process, in other threads.

        Raises:
            InputError: It was started before.
        """
        if self._state != "new":
            raise InputError("a stream runs once: make another")
        self._state = "running"
        for mailbox in self._mailboxes:
            mailbox.on_taken = self._taken
        for outlet in self.outlets:
            outlet.on_written = self.stats.written
            outlet.on_change = self._batcher.wake
            outlet.on_failure = self._sink_failed
            if not outlet.sink.threaded:
                outlet.on_put = self._shown.set
            outlet.sink.attach(self)
            outlet.start()
        for source in self.sources:
            source.start(self._batcher.wake)
        self._thread.start()

    def _sink_failed(self, text: str, error: Exception | None) -> None:
        if any(not outlet.done for outlet in self.outlets):  # otherwise the stream ends, with an error
            self.logged.first(text)
            log.error("%s", text, exc_info=error)

    def _taken(self, result: Result, used: bool) -> None:
        if used and not result.view.startswith(ZOOM):
            self.stats.taken(result.camera, result.age * 1e3)
        self._batcher.wake()

    def _batch(self) -> None:
        try:
            self._batcher.run()
        except BaseException as error:  # raised where the stream is run or iterated
            self._error = error

    def run(
        self,
        stopped: Callable[[], bool] = lambda: False,
        tick: Callable[[], None] = lambda: None,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Run until the sources have ended, a viewer has closed its window, or ``stopped``; then close everything.

        Args:
            stopped: Whether to end, asked several times a second.
            tick: Called as often, in this thread, which also draws windows.
            interrupted: As for ``close``.

        Raises:
            DiinnError: The first error of the device, a file, the only camera or all sinks.
        """
        self._runner = threading.current_thread()
        try:
            self.start()
            while not stopped() and not self._finished():
                for outlet in self.outlets:
                    if not outlet.sink.threaded:
                        outlet.pump()
                tick()
                self._shown.wait(TICK_SECONDS)  # a window is shown at once
                self._shown.clear()
        finally:
            self.close(interrupted)
        self.check()

    def __iter__(self) -> Iterator[Result]:
        """Results as they come, the newest of each camera and view; closes the stream at the end.

        Raises:
            DiinnError: At the end, as ``run`` does.
        """
        mailbox = Mailbox()
        self._mailboxes.append(mailbox)
        try:
            self.start()
            while True:
                ending = self._finished()  # first: what came before is still given
                result = mailbox.take(0 if ending else TICK_SECONDS)
                if result is not None:
                    yield result
                elif ending:
                    break
        finally:
            self.close()
        self.check()

    def _finished(self) -> bool:
        self._log_failures()
        if self._leaving or not self._thread.is_alive():
            return True
        if self.outlets and any(outlet.sink.closed for outlet in self.outlets):
            return True
        if self.outlets and len(self._mailboxes) == len(self.outlets) and all(outlet.done for outlet in self.outlets):
            return True
        if self._wait_for_cameras or any(
            not s.live or s.captured or s.state not in (RETRYING, FAILED) for s in self.sources
        ):
            return False
        first = self.sources[0]
        self._error = first.failure or SourceError(
            f"camera {first.name} {first.trouble}: check {first.remedy}; --retries N waits for it"
        )
        return True

    def _log_failures(self) -> None:
        """Log once which cameras failed, while others go on."""
        if not any(source.captured and source.failure is None for source in self.sources):
            return
        for source in self.sources:
            text = str(source.failure) if source.failure is not None else ""
            if source.live and source.state == RETRYING and not source.captured:
                text = f"camera {source.name} {source.trouble}: it is tried again"
            if text and self.logged.first(text):
                log.error("%s", text)

    def check(self) -> None:
        """Raise what ended the stream, if it was an error.

        Raises:
            DiinnError: Of the device, a file, the only camera or all sinks.
        """
        if self._error is not None:
            raise self._error
        if self.outlets and all(
            outlet.failure and not (outlet.abandoned and self._interrupted) for outlet in self.outlets
        ):
            failure = self.outlets[0].failure
            assert failure is not None
            raise failure
        lost = [source.failure for source in self.sources if source.failure is not None]
        if len(lost) == len(self.sources):
            raise lost[0]

    def set_views(self, camera: str, views: Mapping[str, ViewSpec | str]) -> None:
        """Replace a camera's views from its next frame on.

        Args:
            camera: Its name.
            views: By name, as ``ViewSpec`` or its text form.

        Raises:
            InputError: There is no such camera, or a view does not fit its frames; nothing changes then.
        """
        lane = self.lane(camera)
        specs = CameraSettings(lane.name, views=views).specs  # what is wrong with them is reported there
        made = self._made(lane, *specs.values())
        with self._views_lock:
            lane.publish(made, specs=specs)
        self._batcher.wake()

    def set_denoise(self, camera: str, denoise: Denoise) -> None:
        """Change the strength that the network is given beside a camera's frames, from its next one on.

        Args:
            camera: Its name.
            denoise: "auto", a noise level in grey levels or a ``Strength``.

        Raises:
            InputError: There is no such camera, or the model does not take it; nothing changes then.
        """
        dial = self.lane(camera).denoise
        dial.wanted = dial.allowed(denoise)

    def zoom(self, camera: str, spec: ViewSpec) -> str:
        """Add a view for one viewer, beside the camera's own; it is decoded between batches.

        It is made now, in the caller's thread.

        Returns:
            The view's name, by which its results are known and ``unzoom`` ends it.

        Raises:
            InputError: There is no such camera, or the view does not fit its frames.
        """
        lane = self.lane(camera)
        made = self._made(lane, spec)
        with self._views_lock:
            self._zooms += 1
            name = f"{ZOOM}{self._zooms}"
            lane.publish(made, zooms={**lane.zooms, name: spec})
        return name

    def _made(self, lane: CameraLane, *specs: ViewSpec) -> dict[tuple[ViewSpec, int], Made]:
        """Views with all their geometry, so that the batcher need not compute it; none before the first frame."""
        made: dict[tuple[ViewSpec, int], Made] = {}
        if (size := lane.size) is not None:
            for spec, reduce in itertools.product(specs, (1, 2) if self._batcher.deadline else (1,)):
                calibration = lane.calibration
                view = spec.view(size, calibration, reduce=reduce)
                view.queries(size, self.resolver.bundle.scales, self.resolver.bundle.layout)
                made[spec, reduce] = size, calibration, view
        return made

    def unzoom(self, camera: str, name: str) -> None:
        """End a view that ``zoom`` made; without one of that name nothing happens."""
        lane = self.lane(camera)
        with self._views_lock:
            lane.publish({}, zooms={key: spec for key, spec in lane.zooms.items() if key != name})
            lane.zoom_troubles.pop(name, None)

    def lane(self, camera: str) -> CameraLane:
        """A camera by its name.

        Raises:
            InputError: There is none.
        """
        found = next((lane for lane in self.lanes if lane.name == camera), None)
        if found is None:
            raise InputError(unknown("camera", camera, [lane.name for lane in self.lanes]))
        return found

    def snapshot(self, *, final: bool = False) -> dict[str, Any]:
        """The statistics so far, as plain JSON values.

        Args:
            final: Whether the run has ended: rates are then over all of it, before that over the last seconds.
        """
        return self.stats.snapshot(self.lanes, self.outlets, final=final)

    def close(self, interrupted: Callable[[], bool] = lambda: False) -> None:
        """End everything: cameras at once, then the batch in work, then the sinks, each of which writes what it has.

        Args:
            interrupted: Once it returns True, a batch or a sink that takes long is abandoned; ``busy`` is then True
                while the batch still runs.
        """
        here = threading.current_thread()
        self._leaving = True
        with self._closing:
            mine = self._state != "closed" and self._runner in (None, here)  # the thread that runs it closes it
            running = self._state == "running"
            if mine:
                self._state, self._closer = "closed", here
        if mine:
            try:
                self._close(interrupted, running)
            finally:
                self._closed.set()
        elif here not in (self._closer, self._thread, *(outlet.thread for outlet in self.outlets)):
            while not self._closed.wait(TICK_SECONDS) and not interrupted():  # the resolver is in use till then
                pass

    def _close(self, interrupted: Callable[[], bool], running: bool) -> None:
        self._batcher.stop()
        self.stats.look_at_workers(self.lanes)
        closers = [threading.Thread(target=source.close, daemon=True) for source in self.sources]
        for closer in closers:
            closer.start()
        seconds = LIVE_SECONDS if all(source.live for source in self.sources) else math.inf
        limit = ShutdownDeadline(interrupted, seconds)
        if running and self._thread is not threading.current_thread():
            join(self._thread, lambda: limit.after(INTERRUPTED_SECONDS))
        for outlet in self.outlets:  # all begin to finish, then each is waited for
            outlet.end(failed=self._error is not None or not running)
        limit = ShutdownDeadline(interrupted, seconds)
        for outlet in self.outlets:
            if running:
                outlet.wait(limit.after)
            else:
                with contextlib.suppress(DiinnError):
                    outlet.sink.close(failed=True)
        self._interrupted = interrupted()
        for closer in closers:
            closer.join(max(0.0, limit.began + 2 - time.monotonic()))
        if self._own and not self.busy:
            self.resolver.close()

    @property
    def busy(self) -> bool:
        """Whether a batch is in work."""
        return self._thread.is_alive()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Callback(Sink):
    """Passes results to a function of the user's."""

    where = "callback"

    def __init__(self, function: Callable[[Result], None]) -> None:
        self._function = function

    def write(self, result: Result) -> None:
        self._function(result)
