"""How strongly a frame was degraded, as networks with a dial take it, and the patches of a frame that show it."""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import InputError

PATCH = 32  # pixels along a side: a multiple of 8, so that a codec's grid lies in every patch as in the first
GRID = 8
MOST_PATCHES = 48
FORMS = "auto, a noise level in grey levels (0 for none), or NOISE,COMPRESSION (in Python Strength(NOISE, COMPRESSION))"


@dataclass(frozen=True)
class Strength:
    """How strongly a frame was degraded, as a network with a dial is given it beside the frame; 0 and 0 for clean.

    Attributes:
        noise: Root mean square of the frame's noise, grey levels of 255.
        compression: What lossy coding did, as 100 - JPEG quality.

    Raises:
        InputError: A value is not a finite number from 0 up.
    """

    noise: float = 0.0
    compression: float = 0.0

    def __post_init__(self) -> None:
        for name in ("noise", "compression"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise InputError(f"{name} = {value!r} is no number: give {FORMS}")
            try:
                number = float(value)  # of NumPy's kinds, too
            except OverflowError:  # a whole number of 400 digits
                number = math.inf
            if not 0 <= number < math.inf:
                raise InputError(f"{name} = {str(value)[:20]} is not a finite number from 0 up: give {FORMS}")
            object.__setattr__(self, name, number)

    def __str__(self) -> str:
        return f"noise {self.noise:.1f}, compression {self.compression:.0f}"


NONE = Strength()
AUTO: Literal["auto"] = "auto"
Denoise = Literal["auto"] | float | Strength  # as users give it; a number is a noise level


@dataclass(frozen=True)
class Dial:
    """What a network was trained for: the highest noise and compression, as in ``Strength``."""

    noise: float
    compression: float

    def clamped(self, strength: Strength) -> Strength:
        """The nearest strength that was trained."""
        return Strength(min(strength.noise, self.noise), min(strength.compression, self.compression))


def parse_denoise(value: Any) -> Literal["auto"] | Strength:
    """What a user gave, as "auto" or a Strength; InputError lists the forms that are understood.

    value: "auto", a number or its text (grey levels), "NOISE,COMPRESSION", or a Strength
    """
    if isinstance(value, Strength):
        return value
    if isinstance(value, str):
        text = value.strip()
        if text == "auto":
            return "auto"
        number = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|[-+]?(?:nan|inf)"
        if not re.fullmatch(rf"(?:{number})(?:,(?:{number}))?", text):
            raise InputError(f"denoise {value!r} is not understood: give {FORMS}")
        return Strength(*map(float, text.split(",")))
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InputError(f"denoise {value!r} is not understood: give {FORMS}")
    level: Any = value
    return Strength(level)


def patches(frame: npt.NDArray[Any], most: int = MOST_PATCHES) -> npt.NDArray[Any]:
    """Up to ``most`` patches of a frame, spread evenly, as [S, 32, 32, 3]; one that is too small is mirrored.

    frame: [H, W, 3], any dtype; patches begin at multiples of 8 pixels
    """
    height, width = frame.shape[:2]
    if min(height, width) < PATCH:
        frame = np.pad(frame, ((0, max(0, PATCH - height)), (0, max(0, PATCH - width)), (0, 0)), "symmetric")
        height, width = frame.shape[:2]
    rows, cols = height // PATCH, width // PATCH
    if rows * cols > most:
        wanted = math.sqrt(most * rows / cols)
        rows = min(rows, max(1, round(wanted)))
        cols = min(cols, max(1, most // rows))
        rows = min(height // PATCH, max(1, most // cols))
    tops, lefts = (_spread(n, count) for n, count in ((height, rows), (width, cols)))
    return np.stack([frame[top : top + PATCH, left : left + PATCH] for top in tops for left in lefts])


def _spread(size: int, count: int) -> Sequence[int]:
    """``count`` beginnings of patches along an axis, at multiples of 8."""
    room = size - PATCH
    if count == 1:
        return [room // 2 // GRID * GRID]
    return [i * room // (count - 1) // GRID * GRID for i in range(count)]
