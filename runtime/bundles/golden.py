"""The golden sample: a frame, views and what they must look like, replayed where the model runs.

``golden.npz`` holds ``frame`` uint8 [H, W, 3] BGR; per view ``NAME_out`` float32 [h, w, 3] BGR in units
of [0, 1], unclamped; the views' arguments ``roi_rect``, ``remap_x``, ``remap_y``; and ``tolerance``. With a
dial, ``strengths`` float64 [n, 2] holds (noise, compression), none first, and the outputs of the others are
``NAME_out_1``, ``NAME_out_2``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import BundleError
from diinn.runtime.geometry import grid
from diinn.runtime.geometry.view import View
from diinn.runtime.noise.strength import Strength
from diinn.runtime.util.opencv import cv2

DIAL_STRENGTHS = 3  # that are replayed where the model has a dial
MOST_PIXELS = 2**16  # of its frame and of each output: more would take minutes
LARGEST_TOLERANCE = 0.05  # a sample with more checks nothing
Sample = Mapping[str, npt.NDArray[Any]]


def frame() -> npt.NDArray[np.uint8]:
    """A frame of what is likely to show faults: fine stripes, hard edges, flat saturated colours, noise."""
    y, x = np.mgrid[0:30, 0:36].astype(np.float32)
    zone = 127.5 + 127.5 * np.cos((x**2 + y**2) / 24)
    image = np.stack([zone, 255 - zone, 255 * ((x // 3 + y // 3) % 2)], -1)
    image[20:, :12] = (0, 0, 255)
    image[20:, 12:20] = 255
    image[:8, 28:] = np.random.default_rng(7).uniform(0, 255, (8, 8, 3))
    return image.astype(np.uint8)


def soft_frame() -> npt.NDArray[np.uint8]:
    """``frame`` as a lens would blur it: a lower precision costs it what photographs lose, ``frame`` twice as much."""
    return cv2.GaussianBlur(frame(), (0, 0), 1.0).astype(np.uint8)


def arguments() -> dict[str, npt.NDArray[Any]]:
    """The three views' arguments, as ``golden.npz`` stores them."""
    v, u = np.mgrid[0:40, 0:50].astype(np.float32)
    angle = np.float32(0.3)
    return {
        "resize_dsize": np.array([83, 61]),
        "roi_rect": np.array([4.25, 3.5, 20.125, 12.75]),
        "roi_dsize": np.array([64, 33]),
        "remap_x": 3 + (np.cos(angle) * u - np.sin(angle) * v) * np.float32(0.45),
        "remap_y": 4 + (np.sin(angle) * u + np.cos(angle) * v) * np.float32(0.4),
    }


def views(sample: Sample, layout: grid.Layout) -> dict[str, View]:
    """The views a sample describes, by name; those that a decoder of ``layout`` can make."""
    size = tuple(int(n) for n in sample["resize_dsize"])
    roi_size = tuple(int(n) for n in sample["roi_dsize"])
    x, y, w, h = (float(v) for v in sample["roi_rect"])
    found = {"resize": View.resize((size[0], size[1])), "roi": View.roi((x, y, w, h), (roi_size[0], roi_size[1]))}
    if layout is grid.NEAREST:
        found["remap"] = View.remap(sample["remap_x"], sample["remap_y"])
    height, width = sample["frame"].shape[:2]
    for across, down in ((width, height), *(view.dsize for view in found.values())):
        if across * down > MOST_PIXELS:
            raise ValueError(f"{across}x{down} pixels are too many")
    return found


def strengths(sample: Sample, *, dial: bool) -> list[Strength]:
    """The strengths that a sample's outputs were made for: none, half and all, or none alone without a dial.

    Raises BundleError for a sample with other strengths.
    """
    rows = sample["strengths"] if dial and "strengths" in sample else np.zeros((1, 2))
    if rows.shape != ((DIAL_STRENGTHS if dial else 1), 2):
        raise BundleError(f"the golden sample has strengths {list(rows.shape)}, a dial needs {DIAL_STRENGTHS} of 2")
    return [Strength(*map(float, row)) for row in rows]


def output(view: str, strength: int) -> str:
    """The array that holds a view's output under the sample's n-th strength."""
    return f"{view}_out_{strength}" if strength else f"{view}_out"


def differences(sample: Sample, outputs: Mapping[str, npt.NDArray[Any]]) -> dict[str, float]:
    """Largest absolute difference of each output, by its array's name, in units of [0, 1].

    inf where an output is not finite.
    """
    found = {}
    for name, image in outputs.items():
        gap = np.abs(image - sample[name]).max()
        found[name] = float(gap) if np.isfinite(gap) else float("inf")
    return found


SATURATED = 4.0  # int8 ranges are those of photographs, and the golden frame is none: only what is not finite is wrong


def verdict(sample: Sample, found: Mapping[str, float], where: str, tolerance: float | None = None) -> None:
    """BundleError if any difference exceeds ``tolerance``, or the sample's own."""
    worst = max(found, key=lambda name: found[name])
    if tolerance is None:
        tolerance = float(sample["tolerance"])
        tolerance = tolerance if tolerance <= LARGEST_TOLERANCE else float("nan")
    if not found[worst] <= tolerance:
        raise BundleError(
            f"{where}: the golden {worst.partition('_out')[0]} differs by {found[worst]:.3g} from the exporter's "
            f"reference (tolerance {tolerance:.3g}): the result cannot be trusted; export the bundle "
            "again or choose another backend"
        )
