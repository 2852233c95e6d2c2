"""One camera on its way through the batcher."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Mapping, Sequence

from diinn.runtime.bundles.bundle import Bundle
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.geometry.calibration import Calibration
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.view import View
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.sources import Frame, Source
from diinn.runtime.stream.camera_denoise import CameraDenoise
from diinn.runtime.util.once import Once

log = logging.getLogger(__name__)
# A view made for frames of a size and a calibration, or why it cannot be.
Made = tuple[Size, "Calibration | None", "View | InputError"]


class CameraLane:
    """A camera's views, turns and troubles.

    specs: its views by name; zooms: those of viewers; both are replaced, never changed
    weight: its share when there is not time for all
    interval: seconds between two of its frames at least
    calibration: what was given, else what came with its last frame
    size: (width, height) of its last frame; dropped: frames of a live source that newer ones have replaced
    unwanted: frames of which nobody took a view
    denoise: what the network is given beside its frames
    trouble: what is wrong with its views; zoom_troubles: with a viewer's, by name
    """

    def __init__(
        self,
        source: Source,
        specs: Mapping[str, ViewSpec],
        denoise: CameraDenoise,
        *,
        weight: float = 1.0,
        max_fps: float | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        self.source, self.specs, self.weight, self.calibration = source, dict(specs), weight, calibration
        self._calibrated = calibration is not None
        self.denoise = denoise
        self.interval = 1 / max_fps if max_fps else 0.0
        self.zooms: dict[str, ViewSpec] = {}
        self.zoom_troubles: dict[str, str] = {}
        self.size: Size | None = None
        self.trouble = ""
        self.dropped = self.unwanted = 0
        self._next = 0  # the frame that would be taken if none were dropped
        self._views: dict[tuple[ViewSpec, int], Made] = {}  # by the spec and what divides its size
        self._lock = threading.Lock()
        self.due, self._credit, self._replaced = 0.0, 0.0, 0  # due: of time.monotonic
        self._logged = Once()

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def spacing(self) -> float:
        """Seconds from a frame to the next, as stated or as they came, whichever is more."""
        return max(1 / self.source.rate if self.source.rate else 0.0, self.source.interval)

    def has_turn(self, heaviest: float) -> bool:
        """Whether its frame is for this batch and not passed over.

        A camera of less weight is passed over now and then, but only while newer frames keep replacing its own: time
        is short then, and frames are dropped in any case.
        """
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
            self.dropped += frame.sequence - self._next
            self._next = frame.sequence + 1
            self.due = max(self.due + self.interval, now + self.interval / 2)
        return frame

    def look_at(self, frame: Frame) -> bool:
        """Note a frame's size, and the calibration that came with it; whether the size is new."""
        new, self.size, self.trouble = self.size != frame.size, frame.size, ""
        if not self._calibrated and frame.header is not None:
            self.calibration = frame.header.calibration
        return new

    def view(self, spec: ViewSpec, size: Size, reduce: int = 1) -> View:
        """A view of frames of ``size``, made once; InputError, each time, where it does not fit them."""
        key = spec, reduce
        known, calibration = self._views.get(key), self.calibration
        if known is None or known[0] != size or (spec.calibrated and known[1] is not calibration):
            try:
                made: View | InputError = spec.view(size, calibration, reduce=reduce)
            except InputError as error:
                made = error
            known = self._views[key] = (size, calibration, made)
        if isinstance(known[2], InputError):
            raise known[2]
        return known[2]

    def make(
        self, specs: Sequence[ViewSpec], bundle: Bundle, divisors: Sequence[int]
    ) -> dict[tuple[ViewSpec, int], Made]:
        """Views with all their geometry, for ``publish``, so that the batcher need not compute it.

        None before the first frame; InputError where one does not fit its frames.

        divisors: what to divide their size by
        """
        made: dict[tuple[ViewSpec, int], Made] = {}
        if (size := self.size) is not None:
            for spec, reduce in itertools.product(specs, divisors):
                calibration = self.calibration
                view = spec.view(size, calibration, reduce=reduce)
                view.queries(size, bundle.scales, bundle.layout)
                made[spec, reduce] = size, calibration, view
        return made

    def publish(
        self,
        made: Mapping[tuple[ViewSpec, int], Made],
        *,
        specs: Mapping[str, ViewSpec] | None = None,
        zooms: Mapping[str, ViewSpec] | None = None,
    ) -> None:
        """Other views, or zooms, from now on.

        made: those that were made already, by spec and what divides their size
        """
        with self._lock:
            self._views.update(made)
            self.specs = dict(specs) if specs is not None else self.specs
            self.zooms = dict(zooms) if zooms is not None else self.zooms

    def forget(self) -> None:
        """Drop views that are no longer used."""
        with self._lock:
            wanted = {*self.specs.values(), *self.zooms.values()}
            for key in [key for key in self._views if key[0] not in wanted]:
                del self._views[key]

    def report(self, error: DiinnError) -> None:
        """Note what is wrong, and log it once."""
        self.trouble = str(error)
        if self._logged.first(self.trouble):
            log.warning("camera %s: %s", self.name, error)
