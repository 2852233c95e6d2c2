"""Arbitrary-scale super-resolution without torch: NumPy, OpenCV and one inference backend.

Nothing is imported until it is asked for: ``diinn.runtime.grid`` alone loads NumPy and nothing else.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "SuperResolver": "diinn.runtime.resolver",
    "Encoded": "diinn.runtime.resolver",
    "Strength": "diinn.runtime.strength",
    "View": "diinn.runtime.view",
    "ViewSpec": "diinn.runtime.view_spec",
    "Asked": "diinn.runtime.sources.uri",
    "Calibration": "diinn.runtime.calibration",
    "Stream": "diinn.runtime.stream.stream",
    "CameraSettings": "diinn.runtime.stream.settings",
    "Result": "diinn.runtime.stream.result",
    "SharedReader": "diinn.runtime.shared_frames",
    "Bundle": "diinn.runtime.bundle",
    "DiinnError": "diinn.runtime.errors",
    "InputError": "diinn.runtime.errors",
    "BundleError": "diinn.runtime.errors",
    "CheckpointError": "diinn.runtime.errors",
    "SourceError": "diinn.runtime.errors",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
