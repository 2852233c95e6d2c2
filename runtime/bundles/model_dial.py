"""What a model with a dial is given beside its frames: a strength of the caller's, or one estimated from the frame."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.errors import InputError
from diinn.runtime.images.arrays import Image
from diinn.runtime.noise.estimator import Estimator
from diinn.runtime.noise.strength import AUTO, NONE, Denoise, Strength, parse_denoise
from diinn.runtime.util.once import Once

log = logging.getLogger(__name__)


class ModelDial:
    """The dial of one bundle; of one without it takes nothing but 0."""

    def __init__(self, bundle: bundles.Bundle) -> None:
        self._bundle = bundle
        self._estimator: Estimator | None = None
        self._logged = Once()

    def strengths(self, frames: Sequence[Image], denoise: Denoise | Sequence[Denoise]) -> list[Strength]:
        """What the network is given beside each frame, [H, W, 3] BGR; InputError for what it does not take."""
        if isinstance(denoise, list):
            if len(denoise) != len(frames):
                raise InputError(f"denoise has {len(denoise)} values for {len(frames)} frames: give one, or as many")
            each = denoise
        else:
            each = [denoise] * len(frames)
        return [
            self.estimator()(frame) if wanted == AUTO else self.allowed(wanted)
            for frame, wanted in zip(frames, map(parse_denoise, each), strict=True)
        ]

    def allowed(self, wanted: Strength) -> Strength:
        """The strength the network is given for a wanted one: within what the model was trained for.

        InputError where the model has no dial and ``wanted`` is not 0.
        """
        dial = self._bundle.dial
        if dial is None:
            if wanted != NONE:
                raise self._missing()
            return wanted
        found = dial.clamped(wanted)
        if found != wanted and self._logged.first("clamped"):
            log.warning(
                "denoise %s is beyond what %s was trained for (noise %g, compression %g): clamped",
                *(wanted, self._bundle.name, dial.noise, dial.compression),
            )
        return found

    def estimator(self) -> Estimator:
        """Opened at the first call; InputError where the bundle has none or ONNX Runtime is missing."""
        if self._estimator is None:
            if self._bundle.dial is None:
                raise self._missing()
            path = self._bundle.estimator
            if path is None:
                raise InputError(
                    f"model {self._bundle.name} holds no {bundles.ESTIMATOR}, which estimates the noise: give a number "
                    "in place of auto, or export it again with --estimator"
                )
            self._estimator = Estimator(self._bundle.content(path.name), path, self._bundle.dial)
        return self._estimator

    def _missing(self) -> InputError:
        shipped = "shipped ones have" if self._bundle.name not in bundles.shipped() else "newer ones have"
        return InputError(
            f"model {self._bundle.name} has no dial ({shipped}), so that no noise can be taken away: "
            "leave denoise out, or use a model with a dial"
        )

    def close(self) -> None:
        """Release the estimator."""
        self._estimator = None
