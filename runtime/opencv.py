"""OpenCV as a robot has it: imported here first, and refused in one line where it cannot do."""

from __future__ import annotations

import contextlib
import io
import re

import numpy as np
from diinn.runtime.errors import InputError

try:
    with contextlib.redirect_stderr(io.StringIO()):  # NumPy 2 prints a page about what was built for NumPy 1
        import cv2
except ImportError as error:
    if "numpy" not in str(error).lower():
        raise
    raise InputError(
        f"this OpenCV was built for another NumPy than {np.__version__}: pip install 'numpy<2', or a later OpenCV"
    ) from None

__all__ = ["check_version", "cv2"]
OLDEST = (4, 5, 4)  # Ubuntu 22.04's; Debian 12 and Ubuntu 24.04 have 4.6


def check_version(version: str) -> None:
    """InputError for an OpenCV that lacks what is used here."""
    found = tuple(map(int, re.findall(r"\d+", version)[:3]))
    if found < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        raise InputError(f"OpenCV {version} is too old, {wanted} or later is wanted: pip install opencv-python")


check_version(cv2.__version__)
