"""Where frames come from. A source holds its newest frame (live) or its next one (files) in a slot."""

from diinn.runtime.sources.base import Frame, Source
from diinn.runtime.sources.camera import Camera, RetryPolicy
from diinn.runtime.sources.uri import (
    CaptureOptions,
    each_topic,
    open_camera,
    open_input,
    open_source,
    public,
    same_device,
    scheme_of,
)

__all__ = [
    "Camera",
    "CaptureOptions",
    "Frame",
    "RetryPolicy",
    "Source",
    "each_topic",
    "open_camera",
    "open_input",
    "open_source",
    "public",
    "same_device",
    "scheme_of",
]
