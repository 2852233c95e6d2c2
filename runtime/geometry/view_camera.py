"""The camera that a view is: what a ``camera_info`` beside it says, so that points land where the view shows them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from diinn.runtime.errors import InputError
from diinn.runtime.geometry.calibration import Calibration
from diinn.runtime.geometry.calibration_file import Float64, scaling
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.view import View
from diinn.runtime.util.once import Once

log = logging.getLogger(__name__)
_logged = Once()
UNTURNED = 1e-9  # how far a rotation may be from none, of rounding


@dataclass(frozen=True, eq=False)
class ViewCamera:
    """A view's camera, by the fields of a ``camera_info``; all zeros where it is not known.

    size: (width, height); model: of the distortion; d: its coefficients; k, r: [3, 3]; p: [3, 4]
    turn: the rotation [3, 3] from the axes of the frame's camera to those of the view's; None where they are the same
    """

    size: Size
    model: str
    d: Float64
    k: Float64
    r: Float64
    p: Float64
    turn: Float64 | None = None


def of_view(view: View, src_size: Size, calibration: Calibration | None) -> ViewCamera:
    """The camera that ``view`` is of frames of ``src_size`` (width, height), taken by a camera of ``calibration``.

    The whole frame and a part of it are the same camera with its matrices scaled and shifted. A rectified or virtual
    view is one without distortion.
    """
    if view.camera is not None:
        rotation, projection = view.camera
        turned = np.abs(rotation - np.eye(3)).max() > UNTURNED
        k, turn = projection[:, :3], rotation if turned else None
        return ViewCamera(view.dsize, "plumb_bob", np.zeros(5), k, np.eye(3), projection, turn)
    if calibration is None or view.maps is not None:
        return _unknown(view.dsize)
    try:
        camera = calibration.fitted(src_size)
    except InputError as error:
        if _logged.first(str(error)):
            log.warning("camera_info is left empty: %s", error)
        return _unknown(view.dsize)
    x, y, width, height = view.rect or (0.0, 0.0, *src_size)
    scale = scaling(view.dsize[0] / width, view.dsize[1] / height, x, y)
    p = scale @ np.column_stack([camera.projection, camera.offset])
    model, d = _distortion(camera)
    return ViewCamera(view.dsize, model, d, scale @ camera.k, camera.rotation, p)


def quaternion(rotation: Float64) -> tuple[float, float, float, float]:
    """(x, y, z, w) of a rotation matrix [3, 3]; w is not negative."""
    trace = np.trace(rotation)
    # Four times the outer product of the quaternion with itself: its largest column loses least by rounding.
    (a, b, c), (d, e, f), (g, h, i) = rotation
    outer = np.array(
        [
            [1 + a - e - i, b + d, c + g, h - f],
            [b + d, 1 - a + e - i, f + h, c - g],
            [c + g, f + h, 1 - a - e + i, d - b],
            [h - f, c - g, d - b, 1 + trace],
        ]
    )
    column = outer[:, int(np.argmax(np.diag(outer)))]
    x, y, z, w = (column / np.linalg.norm(column) * (-1 if column[3] < 0 else 1)).tolist()
    return x, y, z, w


def _distortion(camera: Calibration) -> tuple[str, Float64]:
    if camera.fisheye:
        return "equidistant", camera.distortion[:4]
    return ("plumb_bob" if len(camera.distortion) <= 5 else "rational_polynomial"), camera.distortion


def _unknown(size: Size) -> ViewCamera:
    return ViewCamera(size, "plumb_bob", np.zeros(5), np.zeros((3, 3)), np.eye(3), np.zeros((3, 4)))
