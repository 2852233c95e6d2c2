"""``Stream``: cameras in, views out, live."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from diinn.runtime.errors import InputError, unknown
from diinn.runtime.geometry.view import View
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.noise.strength import Denoise
from diinn.runtime.sources import Frame, Source
from diinn.runtime.stream.batcher import Batcher
from diinn.runtime.stream.camera_denoise import CameraDenoise
from diinn.runtime.stream.camera_lane import CameraLane, Made
from diinn.runtime.stream.outcome import Outcome
from diinn.runtime.stream.result import ZOOM, Result
from diinn.runtime.stream.settings import CameraSettings, check_apart, open_sources
from diinn.runtime.stream.shutdown import TICK_SECONDS, Shutdown
from diinn.runtime.stream.sink import CallbackSink, Sink
from diinn.runtime.stream.sink_thread import Key, Mailbox, SinkThread
from diinn.runtime.stream.statistics import Stats
from diinn.runtime.stream.stop import Stop
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util.context import Closing


class Stream(Closing):
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
        if deadline_ms is not None:
            _check_deadline(deadline_ms)
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
        self.sink_threads = [SinkThread(*(sink if isinstance(sink, tuple) else (sink, None))) for sink in sinks]
        if on_result is not None:
            self.sink_threads.append(SinkThread(CallbackSink(on_result)))
        self._mailboxes: list[Mailbox] = list(self.sink_threads)
        self._batcher = Batcher(
            self.resolver,
            self.lanes,
            self._mailboxes,
            self.stats,
            deadline=deadline_ms / 1e3 if deadline_ms else None,
            most=max_frames,
            announce=announce,
        )
        self.outcome = Outcome(self.sources, self.sink_threads, wait_for_cameras=wait_for_cameras)
        self._zooms = 0
        self._views_lock = threading.Lock()
        self._shown = threading.Event()  # something for a window has come
        self._thread = threading.Thread(target=self._batch, name="diinn-batcher", daemon=True)
        self._shutdown = Shutdown(
            self._batcher, self._thread, self.sources, self.sink_threads, self.outcome, self._release
        )

    def start(self) -> None:
        """Begin to capture and process, in other threads.

        Raises:
            InputError: It was started before.
        """
        self._shutdown.start()
        for mailbox in self._mailboxes:
            mailbox.on_taken = self._taken
        for sink_thread in self.sink_threads:
            sink_thread.on_written = self.stats.written
            sink_thread.on_change = self._batcher.wake
            sink_thread.on_failure = self.outcome.sink_failed
            if not sink_thread.sink.threaded:
                sink_thread.on_put = self._shown.set
            sink_thread.sink.attach(self)
            sink_thread.start()
        for source in self.sources:
            source.start(self._batcher.wake)
        self._thread.start()

    def _taken(self, result: Result, used: bool) -> None:
        if used and not result.view.startswith(ZOOM):
            self.stats.taken(result.camera, result.age * 1e3)
        self._batcher.wake()

    def _batch(self) -> None:
        try:
            self._batcher.run()
        except BaseException as error:  # raised where the stream is run or iterated
            self.outcome.error = error

    def run(self, stop: Stop | None = None, on_tick: Callable[[], None] = lambda: None) -> None:
        """Run until the sources have ended, a viewer has closed its window, or ``stop``; then close everything.

        The calling thread draws windows.

        Args:
            stop: Ends it: by its ``when``, its ``deadline``, or at once by ``interrupted``.
            on_tick: Called several times a second, in this thread.

        Raises:
            DiinnError: The first error of the device, a file, the only camera or all sinks.
        """
        stop = stop or Stop()
        self._shutdown.run_here()
        try:
            self.start()
            while not stop.poll() and not self._finished():
                for sink_thread in self.sink_threads:
                    if not sink_thread.sink.threaded:
                        sink_thread.pump()
                on_tick()
                self._shown.wait(TICK_SECONDS)  # a window is shown at once
                self._shown.clear()
        finally:
            self.close(stop)
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
        self.outcome.log_failures()
        sinks_are_all = len(self._mailboxes) == len(self.sink_threads)
        return self._shutdown.begun or not self.busy or self.outcome.finished(sinks_are_all=sinks_are_all)

    def check(self) -> None:
        """Raise what ended the stream, if it was an error.

        Raises:
            DiinnError: Of the device, a file, the only camera or all sinks.
        """
        self.outcome.check(interrupted=self._shutdown.interrupted)

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
        return lane.make(specs, self.resolver.bundle, (1, 2) if self._batcher.deadline else (1,))

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
        return self.stats.snapshot(self.lanes, self.sink_threads, final=final)

    def close(self, stop: Stop | None = None) -> None:
        """End everything: cameras at once, then the batch in work, then the sinks, each of which writes what it has.

        Args:
            stop: Once it is ``interrupted``, a batch or a sink that takes long is left; ``busy`` is then True while the
                batch still runs.
        """
        self._shutdown.close(stop or Stop())

    def _release(self) -> None:
        if self._own and not self.busy:
            self.resolver.close()

    @property
    def busy(self) -> bool:
        """Whether a batch is in work."""
        return self._thread.is_alive()


def _check_deadline(milliseconds: float) -> None:
    if not isinstance(milliseconds, int | float):
        raise InputError(f"a deadline of {milliseconds!r} is not a number of milliseconds")
    if not 0 < milliseconds <= 60_000:
        raise InputError(f"a deadline of {milliseconds:g} ms is not above 0 and up to a minute")
