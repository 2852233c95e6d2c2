"""The CUDA driver without a binding: whether it is installed, and whether the GPU shares the system's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

LIBRARY = "libcuda.so.1"
INTEGRATED = 18  # CU_DEVICE_ATTRIBUTE_INTEGRATED
BINDING = (
    "pip install cuda-bindings, below 13 for a driver of CUDA 12; or pycuda, which compiles itself: that wants a C++ "
    "compiler, and the CUDA toolkit's own nvcc first on PATH (export PATH=/usr/local/cuda/bin:$PATH)"
)


def missing() -> str:
    """Why CUDA cannot start, for messages; empty where it can."""
    try:
        started: int = _library().cuInit(0)
    except OSError:
        return f"no NVIDIA driver here ({LIBRARY} does not load): install the driver"
    if started:
        return f"the NVIDIA driver does not start (CUDA error {started}): see whether nvidia-smi lists a GPU"
    return ""


def no_binding(reasons: Sequence[str]) -> str:
    """That Python cannot call the driver, why each binding of it does not load, and what to do."""
    return f"neither pycuda nor cuda-bindings here ({'; '.join(' '.join(why.split()) for why in reasons)}): {BINDING}"


def integrated(ordinal: int = 0) -> bool:
    """Whether a GPU has no memory of its own, as on a Jetson.

    What it reports as free then leaves out the page cache, which the system frees on demand.
    """
    value, device = ctypes.c_int(), ctypes.c_int()
    try:
        library = _library()
        found = (
            library.cuInit(0) == 0
            and library.cuDeviceGet(ctypes.byref(device), ordinal) == 0
            and library.cuDeviceGetAttribute(ctypes.byref(value), INTEGRATED, device) == 0
        )
    except (OSError, AttributeError):
        return False
    return found and value.value == 1


def _library() -> Any:
    return ctypes.CDLL(LIBRARY)
