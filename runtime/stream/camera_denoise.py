"""The strength that the network is given beside one camera's frames: as set, or estimated."""

from __future__ import annotations

import logging
from typing import Literal

from diinn.runtime.errors import InputError
from diinn.runtime.noise.estimator import Smoothed
from diinn.runtime.noise.strength import AUTO, NONE, Denoise, Strength, parse_denoise
from diinn.runtime.sources import Frame, Source
from diinn.runtime.super_resolver import SuperResolver

log = logging.getLogger(__name__)


class CameraDenoise:
    """A camera's dial.

    wanted: "auto" or a strength; may be replaced at any time, from any thread
    latest: what the network was given last
    """

    def __init__(self, wanted: Denoise | None, source: Source, resolver: SuperResolver) -> None:
        """Raises InputError for what the model does not take.

        wanted: None for "auto" where the source is a camera or video and the model can, else nothing
        """
        self._source, self._resolver = source, resolver
        self._smoothed = Smoothed()
        self.latest = NONE
        self.wanted: Literal["auto"] | Strength = self._default() if wanted is None else self.allowed(wanted)

    def allowed(self, wanted: Denoise) -> Literal["auto"] | Strength:
        """``wanted`` as the model takes it; InputError where it does not."""
        found = parse_denoise(wanted)
        if isinstance(found, Strength):
            return self._resolver.dial.allowed(found)
        self._resolver.dial.estimator()
        return found

    def _default(self) -> Literal["auto"] | Strength:
        still = self._source.rate is None and not self._source.live
        if still or self._resolver.bundle.dial is None:
            return NONE
        try:
            return self.allowed(AUTO)
        except InputError as error:
            log.warning("frames are taken as they are: %s", error)
            return NONE

    def of(self, frame: Frame) -> Strength:
        """The strength for a frame, which is the camera's next.

        Of a camera or video it is smoothed by the frames' time stamps; of stills each is estimated alone.
        """
        wanted = self.wanted
        if isinstance(wanted, Strength):
            self.latest = wanted
            return wanted
        source = self._source
        if source.live:
            at = frame.captured
        elif source.rate is not None:
            at = frame.sequence / source.rate
        else:
            self.latest = self._resolver.estimate(frame.image)
            return self.latest
        if self._smoothed.due(at):
            self._smoothed.add(self._resolver.estimate(frame.image), at)
        self.latest = self._smoothed.value or NONE
        return self.latest

    @property
    def strength(self) -> Strength:
        """The strength that was set, or with "auto" the last estimate."""
        return self.latest if self.wanted == AUTO else self.wanted

    @property
    def statistics(self) -> dict[str, bool | float]:
        """The fields of ``--stats``."""
        return {
            "auto": self.wanted == AUTO,
            "noise": round(self.strength.noise, 2),
            "compression": round(self.strength.compression, 1),
        }
