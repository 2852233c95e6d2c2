"""Calibrated cameras: where a pixel of an undistorted or a virtual view lies in the camera's own frame.

Read by ``calibration_file``; the pinhole model with OpenCV's distortion (``plumb_bob``,
``rational_polynomial``) and the fisheye model (``equidistant``).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import InputError
from diinn.runtime.geometry import calibration_file
from diinn.runtime.geometry.calibration_file import CameraInfo, Float64, scaling
from diinn.runtime.geometry.grid import Size

log = logging.getLogger(__name__)
ASSUMED_FOV = 60.0  # degrees, across: of a camera without calibration
OUTSIDE = np.float32(-1e6)  # a position in no frame


class Calibration(CameraInfo):
    """A camera's geometry; read one with ``load``.

    Attributes:
        name: Where it was read from, for messages.
        size: (width, height) of the frames it holds for.
        k: Camera matrix, float64 [3, 3], pixels; the centre of the first pixel is 0.
        distortion: OpenCV's coefficients, float64.
        fisheye: Whether these are of OpenCV's fisheye model (ROS: ``equidistant``), else of the pinhole model.
        rotation: Of the rectified camera (ROS: R), [3, 3]; unit without one.
        projection: Of the rectified camera (ROS: the left of P), [3, 3]; ``k`` without one.
        offset: The right of P, [3]: of the second camera of a stereo pair, zeros of any other.
    """

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Read a camera_info of ROS (a file or an echoed message) or an OpenCV calibration file.

        Raises:
            InputError: It cannot be read or is no calibration; the message names what is wrong.
        """
        return Calibration(**vars(calibration_file.load(Path(path))))

    @staticmethod
    def of_message(name: str, values: Mapping[str, Any]) -> Calibration:
        """A ``camera_info`` message, whose ``roi`` and ``binning`` are heeded.

        Args:
            name: Its topic, for messages.
            values: Its fields by name.

        Raises:
            InputError: It is no calibration; the message names what is wrong.
        """
        try:
            return Calibration(**vars(calibration_file.of_message(name, values)))
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            what = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
            raise InputError(f"{name!r} is no camera calibration: {what}") from None

    @staticmethod
    def assumed(size: Size) -> Calibration:
        """A camera without distortion that sees ``ASSUMED_FOV`` degrees across."""
        k = pinhole(ASSUMED_FOV, size)
        return Calibration("assumed", size, k, np.zeros(5), False, np.eye(3), k)

    def fitted(self, size: Size) -> Calibration:
        """This calibration for frames of another size, (width, height), scaled.

        Raises:
            InputError: The aspect ratio differs.
        """
        if size == self.size:
            return self
        across, down = size[0] / self.size[0], size[1] / self.size[1]
        if not math.isclose(across, down, rel_tol=2e-3):
            raise InputError(
                f"calibration {self.name!r} is for {self.size[0]}x{self.size[1]} frames, these are "
                f"{size[0]}x{size[1]}: calibrate at this size, or ask the camera for --input-size "
                f"{self.size[0]}x{self.size[1]} (in a file 'size:')"
            )
        _warn_scaled(self.name, self.size, size)
        scale = scaling(across, down)
        return replace(
            self, size=size, k=scale @ self.k, projection=scale @ self.projection, offset=scale @ self.offset
        )

    def rectified(self, size: tuple[float, float]) -> tuple[Float64, Float64]:
        """The undistorted camera whose whole picture has a given size.

        Args:
            size: (width, height), pixels.

        Returns:
            (rotation, projection), float64 [3, 3] each, as ``maps`` takes them.
        """
        return self.rotation, scaling(size[0] / self.size[0], size[1] / self.size[1]) @ self.projection

    def maps(
        self, rotation: Float64, projection: Float64, dsize: Size
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Where each pixel of another camera at the same place lies in this one's frame.

        Args:
            rotation: From this camera's axes to the other's, [3, 3].
            projection: The other's camera matrix, [3, 3].
            dsize: (width, height) of the other's picture.

        Returns:
            (map_x, map_y), float32 [h, w] each, LR pixels, as ``cv2.remap`` takes them; what this camera cannot see
            lies far outside.
        """
        if self.fisheye:
            coefficients = np.asarray(self.distortion[:4], np.float64).reshape(4, 1)
            map_x, map_y = cv2.fisheye.initUndistortRectifyMap(
                self.k, coefficients, rotation, projection, dsize, cv2.CV_32FC1
            )
        else:
            map_x, map_y = cv2.initUndistortRectifyMap(
                self.k, self.distortion, rotation, projection, dsize, cv2.CV_32FC1
            )
        hidden = self._hidden(rotation, projection, dsize)
        map_x, map_y = np.where(hidden, OUTSIDE, map_x), np.where(hidden, OUTSIDE, map_y)
        return map_x.astype(np.float32), map_y.astype(np.float32)

    def _hidden(self, rotation: Float64, projection: Float64, dsize: Size) -> npt.NDArray[np.bool_]:
        """Pixels [h, w] whose rays come from behind, or from beyond where the distortion's polynomial turns back."""
        back = np.linalg.inv(projection @ rotation).astype(np.float32)
        u, v = np.arange(dsize[0], dtype=np.float32)[None], np.arange(dsize[1], dtype=np.float32)[:, None]
        x, y, z = (row[0] * u + row[1] * v + row[2] for row in back)
        behind: npt.NDArray[np.bool_] = z <= 1e-6
        farthest = np.float32(self._last_radius()) * np.where(behind, np.float32(1), z)
        hidden: npt.NDArray[np.bool_] = behind | (np.hypot(x, y) > farthest)
        return hidden

    def _last_radius(self) -> float:
        """The largest radius (tangent of the angle to the axis) up to which the distorted one grows with it."""
        if self.fisheye:
            angle = np.linspace(0.0, math.pi / 2, 9001)
            a2, k = angle * angle, self.distortion
            bent = angle * (1 + a2 * (k[0] + a2 * (k[1] + a2 * (k[2] + a2 * k[3]))))
            turns = np.flatnonzero(np.diff(bent) <= 0)
            return math.tan(angle[turns[0]]) if len(turns) else 1e9
        k = np.zeros(8)
        k[: min(8, len(self.distortion))] = self.distortion[:8]
        r = np.linspace(0.0, 20.0, 20001)
        r2 = r * r
        bent = r * (1 + r2 * (k[0] + r2 * (k[1] + r2 * k[4]))) / (1 + r2 * (k[5] + r2 * (k[6] + r2 * k[7])))
        turns = np.flatnonzero(np.diff(bent) <= 0)
        return float(r[turns[0]]) if len(turns) else 1e9


@cache
def _warn_scaled(name: str, size: Size, frame_size: Size) -> None:
    """Logged once, however many views are made."""
    log.warning(
        "calibration %r is for %dx%d frames and was scaled to %dx%d: right where the camera reduces its picture, wrong "
        "where it cuts it",
        *(name, *size, *frame_size),
    )


def pinhole(fov: float, size: Size) -> Float64:
    """The camera matrix of a camera that sees ``fov`` degrees across ``size`` (width, height)."""
    focal = size[0] / 2 / math.tan(math.radians(fov) / 2)
    return np.array([[focal, 0, (size[0] - 1) / 2], [0, focal, (size[1] - 1) / 2], [0, 0, 1.0]])


def turned(pan: float, tilt: float) -> Float64:
    """The rotation [3, 3] from a camera's axes to those of one turned right by ``pan``, then up by ``tilt``.

    Degrees; x points right, y down, z ahead.
    """
    p, t = math.radians(pan), math.radians(tilt)
    about_y = np.array([[math.cos(p), 0, -math.sin(p)], [0, 1, 0], [math.sin(p), 0, math.cos(p)]])
    about_x = np.array([[1, 0, 0], [0, math.cos(t), math.sin(t)], [0, -math.sin(t), math.cos(t)]])
    turn: Float64 = about_x @ about_y
    return turn
