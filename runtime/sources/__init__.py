"""Where frames come from. A source holds its newest frame (live) or its next one (files) in a slot."""

from diinn.runtime.sources.base import Frame, Source
from diinn.runtime.sources.camera import Camera, Patience
from diinn.runtime.sources.uri import Asked, open_camera, open_input, open_source, public, same_device, scheme_of

__all__ = [
    "Asked",
    "Camera",
    "Frame",
    "Patience",
    "Source",
    "open_camera",
    "open_input",
    "open_source",
    "public",
    "same_device",
    "scheme_of",
]
