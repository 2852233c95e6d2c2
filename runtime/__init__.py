"""Arbitrary-scale super-resolution without torch: NumPy, OpenCV and one inference backend.

Nothing is imported until it is asked for: ``diinn.runtime.geometry.grid`` alone loads NumPy and nothing else.
"""

from importlib import import_module
from typing import Any

_HOME = {
    "SuperResolver": "diinn.runtime.super_resolver",
    "Encoded": "diinn.runtime.super_resolver",
    "Strength": "diinn.runtime.noise.strength",
    "View": "diinn.runtime.geometry.view",
    "ViewSpec": "diinn.runtime.geometry.view_spec",
    "CaptureOptions": "diinn.runtime.sources.uri",
    "Calibration": "diinn.runtime.geometry.calibration",
    "Stream": "diinn.runtime.stream.stream",
    "CameraSettings": "diinn.runtime.stream.settings",
    "Result": "diinn.runtime.stream.result",
    "SharedReader": "diinn.runtime.sinks.shared_memory",
    "Bundle": "diinn.runtime.bundles.bundle",
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
