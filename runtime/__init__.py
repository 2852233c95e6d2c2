"""Arbitrary-scale super-resolution without torch: NumPy, OpenCV and one inference backend.

Names are imported on first use: ``diinn.runtime.geometry.grid`` alone loads NumPy and nothing else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diinn.runtime.bundles.bundle import Bundle as Bundle
    from diinn.runtime.errors import BundleError as BundleError
    from diinn.runtime.errors import CheckpointError as CheckpointError
    from diinn.runtime.errors import DiinnError as DiinnError
    from diinn.runtime.errors import InputError as InputError
    from diinn.runtime.errors import OutOfMemory as OutOfMemory
    from diinn.runtime.errors import SourceError as SourceError
    from diinn.runtime.geometry.calibration import Calibration as Calibration
    from diinn.runtime.geometry.view import View as View
    from diinn.runtime.geometry.view_spec import ViewSpec as ViewSpec
    from diinn.runtime.noise.strength import Strength as Strength
    from diinn.runtime.sinks.shared_memory import SharedFrame as SharedFrame
    from diinn.runtime.sinks.shared_memory import SharedReader as SharedReader
    from diinn.runtime.sources.camera import RetryPolicy as RetryPolicy
    from diinn.runtime.sources.uri import CaptureOptions as CaptureOptions
    from diinn.runtime.stream.result import Result as Result
    from diinn.runtime.stream.settings import CameraSettings as CameraSettings
    from diinn.runtime.stream.sink import Sink as Sink
    from diinn.runtime.stream.stop import Stop as Stop
    from diinn.runtime.stream.stream import Stream as Stream
    from diinn.runtime.super_resolver import Encoded as Encoded
    from diinn.runtime.super_resolver import SuperResolver as SuperResolver

_MODULES = {
    "Bundle": "bundles.bundle",
    "BundleError": "errors",
    "Calibration": "geometry.calibration",
    "CameraSettings": "stream.settings",
    "CaptureOptions": "sources.uri",
    "CheckpointError": "errors",
    "DiinnError": "errors",
    "Encoded": "super_resolver",
    "InputError": "errors",
    "OutOfMemory": "errors",
    "Result": "stream.result",
    "RetryPolicy": "sources.camera",
    "SharedFrame": "sinks.shared_memory",
    "SharedReader": "sinks.shared_memory",
    "Sink": "stream.sink",
    "SourceError": "errors",
    "Stop": "stream.stop",
    "Strength": "noise.strength",
    "Stream": "stream.stream",
    "SuperResolver": "super_resolver",
    "View": "geometry.view",
    "ViewSpec": "geometry.view_spec",
}
__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
