"""A page in the browser that shows all cameras and views, live."""

from diinn.runtime.sinks.preview.server import Preview

__all__ = ["Preview"]
