"""Estimates a frame's noise and compression, for ``denoise="auto"``."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from diinn.runtime.errors import BundleError, InputError
from diinn.runtime.images.arrays import Image
from diinn.runtime.noise.strength import NONE, PATCH, Dial, Strength, patches

SMOOTH_SECONDS = 1.0  # after which an estimate has lost two thirds of its weight
LOOK_SECONDS, LOOK_FRAMES = 0.1, 7  # between two looks at a camera: one takes up to 17 % of a small frame's time


class Estimator:
    """A bundle's estimator graph on one CPU thread.

    Its input ``patches`` is float32 [S, 3, 32, 32] (RGB, 0 to 255) of one frame, its output ``strength`` [2], noise and
    compression.
    """

    def __init__(self, content: bytes, path: Path, dial: Dial) -> None:
        """Open the graph.

        Args:
            content: The graph.
            path: Where it is from, for messages.
            dial: What estimates are clamped to.

        Raises:
            BundleError: It is another graph.
            InputError: ONNX Runtime is missing.
        """
        try:
            from diinn.runtime.util.onnx_runtime import open_session, ort
        except ImportError:
            raise InputError(
                "denoise auto needs ONNX Runtime, on the CPU: pip install onnxruntime, or give a number"
            ) from None
        self._dial = dial
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is reported once, by us
        self._session = open_session(content, path, "CPU", options)
        found = [(value.name, value.shape) for value in (*self._session.get_inputs(), *self._session.get_outputs())]
        if [(name, shape[-3:]) for name, shape in found] != [("patches", [3, PATCH, PATCH]), ("strength", [2])]:
            raise BundleError(f"{path} takes and gives {found}: it is no estimator, export the bundle again")

    def __call__(self, frame: Image) -> Strength:
        """The strength of one frame, uint8 or float32 [H, W, 3] BGR."""
        found = patches(frame)[..., ::-1].transpose(0, 3, 1, 2)
        scale = np.float32(1 if frame.dtype == np.uint8 else 255)
        values = np.ascontiguousarray(np.clip(found * scale, 0, 255), np.float32)
        noise, compression = self._session.run(["strength"], {"patches": values})[0].tolist()
        if not (math.isfinite(noise) and math.isfinite(compression)):  # frames of NaN
            return NONE
        return self._dial.clamped(Strength(max(0.0, noise), max(0.0, compression)))


class Smoothed:
    """A camera's strength over time, so that a scene that stands still does not flicker.

    An exponential mean by the frames' own time stamps, so that a video gives the same result each time.
    """

    def __init__(self) -> None:
        self.value: Strength | None = None
        self._looked, self._frames = -math.inf, 0

    def due(self, at: float) -> bool:
        """Whether to look at the next frame, of time ``at``, seconds; to be asked once for each.

        A clock that was set back counts as due.
        """
        self._frames += 1
        passed = at - self._looked
        if self.value is None or not 0 <= passed < SMOOTH_SECONDS:
            return True
        return self._frames >= LOOK_FRAMES and passed >= LOOK_SECONDS

    def add(self, found: Strength, at: float) -> None:
        """Take in the strength found in a frame of time ``at``, seconds."""
        passed = at - self._looked
        self._looked, self._frames = at, 0
        if self.value is None or passed < 0:
            self.value = found
            return
        share = 1 - math.exp(-passed / SMOOTH_SECONDS)
        self.value = Strength(
            self.value.noise + share * (found.noise - self.value.noise),
            self.value.compression + share * (found.compression - self.value.compression),
        )
