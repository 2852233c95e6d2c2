"""Files of a camera's calibration: ROS's camera_info as a file or a message, or OpenCV's own."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import InputError, unknown
from diinn.runtime.geometry.grid import Size
from diinn.runtime.util import reading

log = logging.getLogger(__name__)
Float64 = npt.NDArray[np.float64]
FISHEYE = ("equidistant", "fisheye")
PINHOLE = ("plumb_bob", "rational_polynomial", "thin_prism", "pinhole", "none")
MODELS = (*FISHEYE, "kannala_brandt", *PINHOLE)
MOST_BYTES, MOST_OPENED, MOST_INDENT = 2**22, 1000, 500  # of OpenCV's files
MOST_NESTED = 6  # mappings around a message
LARGEST_SIDE, LARGEST_VALUE = 100_000, 1e9
# How files, messages and OpenCV's files name the same, the usual one first.
NAMES = {
    "image_width": ("image_width", "width"),
    "image_height": ("image_height", "height"),
    "camera_matrix": ("camera_matrix", "k", "K", "cameraMatrix"),
    "distortion_coefficients": ("distortion_coefficients", "d", "D", "distCoeffs", "dist_coeffs"),
    "rectification_matrix": ("rectification_matrix", "r", "R"),
    "projection_matrix": ("projection_matrix", "p", "P"),
}
WANTED = {"fisheye_model", *(name for names in NAMES.values() for name in names)}


@dataclass(frozen=True, eq=False)  # it holds arrays: equal to itself alone
class CameraInfo:
    """A camera's geometry.

    name: where it is from, for messages; size: (width, height) of the frames it holds for
    k: camera matrix [3, 3]; distortion: OpenCV's coefficients; fisheye: whose model they are
    rotation, projection: [3, 3] each, of the rectified camera (ROS: R and the left of P); unit and k without one
    offset: [3], the right of P: of the second camera of a stereo pair, zeros of any other
    """

    name: str
    size: Size
    k: Float64
    distortion: Float64
    fisheye: bool
    rotation: Float64
    projection: Float64
    offset: Float64 = field(default_factory=lambda: np.zeros(3))


def load(path: Path) -> CameraInfo:
    """A camera_info of ROS, a file or ``ros2 topic echo``, or an OpenCV calibration file (YAML, XML or JSON).

    Raises InputError with what is wrong with it.
    """
    text = reading.text(path, MOST_BYTES, "calibration")
    opencv = text.startswith("%YAML:1.0") or "opencv-matrix" in text or text.lstrip().startswith("<?xml")
    try:
        return (_from_opencv if opencv else _from_ros)(path, text)
    except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise InputError(
            f"{str(path)!r} is no camera calibration: {what}; give a camera_info of ROS or OpenCV's own file"
        ) from None


def _from_ros(path: Path, text: str) -> CameraInfo:
    from diinn.runtime.util import yaml_file

    if len(text) > yaml_file.MOST_BYTES:
        raise ValueError(f"it is larger than {yaml_file.MOST_BYTES >> 10} KiB")
    document = yaml_file.parse(text, str(path), first=True)  # an echo may go on: --- and the next message
    if not isinstance(document, dict):
        raise ValueError("it holds no keys")
    found = list(_infos(document))
    if len(found) > 1:
        names = ", ".join(repr(name) for name, _ in found)[:100]
        raise ValueError(f"it holds several, {names}: a file each is wanted")
    return of_message(str(path), found[0][1] if found else document)


def of_message(name: str, info: Mapping[str, Any]) -> CameraInfo:
    """The values of a camera_info of ROS, by their names in a file or a message.

    Raises InputError or one of the errors of ``load`` with what is wrong with them.
    """
    k = _matrix(_numbers(info, "camera_matrix"), (3, 3))
    if not k.any():
        raise ValueError("the camera is not calibrated, its matrix is all zeros")
    coefficients = _numbers(info, "distortion_coefficients", ())
    fisheye = _is_fisheye(name, info)
    r, p = _numbers(info, "rectification_matrix", ()), _numbers(info, "projection_matrix", ())
    rotation = _matrix(r, (3, 3)) if np.any(r) else np.eye(3)
    projection = _matrix(p, (3, 4)) if np.any(p) else np.column_stack([k, np.zeros(3)])
    size = (_key(info, "image_width"), _key(info, "image_height"))
    return _read_out(_checked(name, size, k, coefficients, fisheye, rotation, projection), info)


def _infos(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each camera_info in a document, at the top or below a topic's or node's name, and its name."""
    if not isinstance(value, dict) or depth > MOST_NESTED:
        return
    if any(key in value for key in NAMES["camera_matrix"]):
        yield name, value
        return
    for key, inner in value.items():
        yield from _infos(inner, key, depth + 1)


def _key(info: Mapping[str, Any], wanted: str) -> Any:
    for name in NAMES[wanted]:
        if info.get(name) is not None:
            return info[name]
    raise KeyError(wanted)


def _numbers(info: Mapping[str, Any], wanted: str, default: Any = None) -> Float64:
    """A list of numbers, or a mapping that holds one under ``data``."""
    try:
        value = _key(info, wanted)
    except KeyError:
        if default is None:
            raise
        value = default
    if isinstance(value, dict):
        value = value["data"]
    return np.asarray([] if value is None else value, np.float64).reshape(-1)


def _is_fisheye(name: str, info: Mapping[str, Any]) -> bool:
    """Which of the two models, by ``distortion_model`` or, in files of older ROS, ``camera_model``.

    A file that states neither is taken for a pinhole, with a warning: the numbers do not show which it is. An unknown
    ``camera_model`` beside a ``distortion_model`` is ignored with a warning: some write the camera's name there.
    """
    distortion, camera = (_model(info.get(key)) for key in ("distortion_model", "camera_model"))
    for key, model in (("distortion_model", distortion), ("camera_model", "" if distortion else camera)):
        if model and model not in MODELS:
            raise InputError(f"{name!r}: " + unknown(key, model, [*FISHEYE, *PINHOLE[:2]]))
    if camera and camera not in MODELS:
        log.warning(
            "%r: camera_model %r is none that is known here; its distortion_model %r is followed, remove camera_model "
            "if that is right",
            *(name, camera, distortion),
        )
    if distortion in PINHOLE and camera in MODELS and camera not in PINHOLE:
        raise InputError(
            f"{name!r}: camera_model {camera!r} and distortion_model {distortion!r} contradict each other: "
            "remove the wrong one"
        )
    stated = distortion or camera
    if not stated:
        _warn_unstated(name, "distortion_model", "distortion_model: equidistant")
    return bool(stated) and stated not in PINHOLE


def _model(value: Any) -> str:
    return "" if value is None else str(value).strip().lower()


def _warn_unstated(name: str, key: str, remedy: str) -> None:
    log.warning("%r states no %s and is taken for a pinhole: write '%s' if it is a fisheye", name, key, remedy)


def _read_out(whole: CameraInfo, info: Mapping[str, Any]) -> CameraInfo:
    """The calibration of the frames that are sent, by a message's ``roi`` and ``binning``.

    They give the part of the sensor's picture that is read out, and how many of its pixels make one.
    """
    roi = info.get("roi") or {}
    if not isinstance(roi, dict):
        raise ValueError("its roi is no mapping")
    x, y = (_whole(roi.get(key), f"roi {key}") for key in ("x_offset", "y_offset"))
    width = _whole(roi.get("width"), "roi width") or whole.size[0] - x
    height = _whole(roi.get("height"), "roi height") or whole.size[1] - y
    if min(width, height) < 1 or x + width > whole.size[0] or y + height > whole.size[1]:
        raise ValueError(f"its roi {x},{y},{width},{height} is not inside {whole.size[0]}x{whole.size[1]}")
    across, down = (_whole(info.get(key), key) or 1 for key in ("binning_x", "binning_y"))
    size = (width // across, height // down)
    if min(size) < 1:
        raise ValueError(f"its binning {across}x{down} leaves no pixel")
    if (x, y, size) == (0, 0, whole.size):
        return whole
    scale = scaling(1 / across, 1 / down, x, y)
    return replace(
        whole, size=size, k=scale @ whole.k, projection=scale @ whole.projection, offset=scale @ whole.offset
    )


def _from_opencv(path: Path, text: str) -> CameraInfo:
    """An OpenCV calibration file, read as the YAML, JSON or XML it is.

    OpenCV's own reader crashes on some files that were cut short or nested deep.
    """
    _check_depth(text)
    info = _values(path, text)
    k = _matrix(_numbers(info, "camera_matrix"), (3, 3))
    coefficients = _numbers(info, "distortion_coefficients")
    stated = info.get("fisheye_model")
    if stated is None and coefficients.size == 4:  # more are a pinhole's for certain
        _warn_unstated(str(path), "fisheye_model", "fisheye_model: 1")
    size = (_key(info, "image_width"), _key(info, "image_height"))
    p = np.column_stack([k, np.zeros(3)])
    return _checked(str(path), size, k, coefficients, float(stated or 0) == 1, np.eye(3), p)


def _values(path: Path, text: str) -> dict[str, Any]:
    """What an OpenCV file holds of a calibration, by name: numbers, and matrices as mappings with ``data``."""
    from diinn.runtime.util import yaml_file

    if text.lstrip().startswith("<"):
        return _from_xml(text)
    if text.lstrip().startswith("{"):
        with contextlib.suppress(ValueError):  # older ones write 300. which is no JSON, but YAML
            found = json.loads(text)
            return found if isinstance(found, dict) else {}
    blocks = re.split(r"^(?=\S)", re.sub("!!opencv-(nd-)?matrix", "", text), flags=re.MULTILINE)
    wanted = (_wanted(block) for block in blocks)  # the rest may be long
    found = yaml_file.parse("".join(wanted), str(path))
    return found if isinstance(found, dict) else {}


def _wanted(block: str) -> str:
    """A key with what is below it, or as many empty lines, so that errors name the right one."""
    key = block.partition(":")[0].strip("\"' ")
    return block if key in WANTED or block[:1] in ("{", "}") else "\n" * block.count("\n")


def _from_xml(text: str) -> dict[str, Any]:
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it defines entities")
    found: dict[str, Any] = {}
    try:
        for element in ElementTree.fromstring(text):
            data = element.find("data")
            found[element.tag] = (element.text or "").strip() if data is None else {"data": (data.text or "").split()}
    except ElementTree.ParseError as error:
        raise ValueError(f"it is not XML: {error}") from None
    return found


def _check_depth(text: str) -> None:
    """ValueError for a file that could be nested deeper than parsers bear, counting all that opens a level."""
    opened = text.count("[") + text.count("{") + len(re.findall(r"<(?![/?!])", text))
    indent = max((len(found[0]) for found in re.finditer(r"^[ \t?-]+", text, re.MULTILINE)), default=0)
    if opened > MOST_OPENED or indent > MOST_INDENT:
        raise ValueError("it is nested too deep, or holds more than a calibration")


def _checked(
    name: str, size: tuple[Any, Any], k: Float64, distortion: Float64, fisheye: bool, r: Float64, p: Float64
) -> CameraInfo:
    """p: [3, 4]."""
    width, height = (_whole(value, key) for value, key in zip(size, ("image_width", "image_height"), strict=True))
    if not all(np.isfinite(values).all() for values in (k, distortion, r, p)):
        raise ValueError("it holds values that are not finite")
    if max(np.abs(values).max(initial=0) for values in (k, distortion, p)) > LARGEST_VALUE:
        raise ValueError(f"it holds values above {LARGEST_VALUE:g}, which no camera has")
    allowed = (4,) if fisheye else (0, 4, 5, 8, 12, 14)
    if len(distortion) not in allowed:
        wanted = " or ".join(map(str, allowed))
        raise ValueError(f"{len(distortion)} distortion coefficients, {wanted} are wanted")
    if min(width, height, k[0, 0], k[1, 1], p[0, 0], p[1, 1]) <= 0:
        raise ValueError("its size and focal lengths must be above 0")
    if abs(np.linalg.det(k)) < 1e-9 or abs(np.linalg.det(p[:, :3])) < 1e-9:
        raise ValueError("its camera or projection matrix cannot be inverted")
    if np.abs(r @ r.T - np.eye(3)).max() > 1e-2 or np.linalg.det(r) < 0:
        raise ValueError("its rectification matrix is no rotation")
    padded = np.zeros(max(len(distortion), 4 if fisheye else 5))
    padded[: len(distortion)] = distortion
    return CameraInfo(name, (width, height), k, padded, fisheye, r, p[:, :3], p[:, 3])


def _whole(value: Any, name: str) -> int:
    """A whole number of pixels, 0 where there is none."""
    if value is None:
        return 0
    number = float(value)
    if not (number.is_integer() and 0 <= number <= LARGEST_SIDE):
        raise ValueError(f"{name} {str(value)[:20]} is not a whole number from 0 to {LARGEST_SIDE}")
    return int(number)


def _matrix(values: Any, shape: tuple[int, int]) -> Float64:
    matrix = np.asarray(values, np.float64)
    if matrix.size != shape[0] * shape[1]:
        raise ValueError(f"a matrix of {matrix.size} values is not {shape[0]}x{shape[1]}")
    return matrix.reshape(shape)


def scaling(across: float, down: float, left: float = 0.0, top: float = 0.0) -> Float64:
    """The matrix [3, 3] from pixel positions to those of a picture that is scaled and starts at (left, top).

    The centre of the first pixel is 0 in both.
    """
    return np.array(
        [
            [across, 0, (0.5 - left) * across - 0.5],
            [0, down, (0.5 - top) * down - 0.5],
            [0, 0, 1.0],
        ]
    )
