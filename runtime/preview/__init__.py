"""A page in the browser that shows all cameras and views, live."""

from diinn.runtime.preview.server import Preview

__all__ = ["Preview"]
