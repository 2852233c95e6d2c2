"""What GStreamer itself has against a pipeline: OpenCV opens none without saying why, and some it tries for ever.

The library is the one that OpenCV is linked to; where it cannot be loaded, nothing is known.
"""

from __future__ import annotations

import ctypes
from functools import cache

FATAL_ERRORS = 1  # GstParseFlags
PLAYING, STOPPED = 4, 1  # GstState
ERROR = 2  # GstMessageType


class _Error(ctypes.Structure):
    """GError"""

    _fields_ = (("domain", ctypes.c_uint32), ("code", ctypes.c_int), ("message", ctypes.c_char_p))


_ErrorPointer = ctypes.POINTER(_Error)


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libgstreamer-1.0.so.0")
    except OSError:
        return None
    library.gst_parse_launch_full.restype = ctypes.c_void_p
    library.gst_element_get_bus.restype = ctypes.c_void_p
    library.gst_bus_timed_pop_filtered.restype = ctypes.c_void_p
    if not library.gst_init_check(None, None, None):
        return None
    return library


def mistake(pipeline: str) -> str:
    """What keeps a description from becoming a pipeline, as ``no element "nosuch"``; empty if nothing does."""
    library = _library()
    if library is None:
        return ""
    element, why = _parsed(library, pipeline)
    if element:
        library.gst_object_unref(ctypes.c_void_p(element))
    return why


def failure(pipeline: str, seconds: float) -> str:
    """The error that a pipeline ends with when it is started; empty if none comes within ``seconds``."""
    library = _library()
    if library is None:
        return ""
    element, why = _parsed(library, pipeline)
    if not element:
        return why
    library.gst_element_set_state(ctypes.c_void_p(element), PLAYING)
    bus = ctypes.c_void_p(library.gst_element_get_bus(ctypes.c_void_p(element)))
    message = library.gst_bus_timed_pop_filtered(bus, ctypes.c_uint64(round(seconds * 1e9)), ERROR)
    if message:
        error = _ErrorPointer()
        library.gst_message_parse_error(ctypes.c_void_p(message), ctypes.byref(error), None)
        why = _text(error)
        library.gst_mini_object_unref(ctypes.c_void_p(message))
    library.gst_element_set_state(ctypes.c_void_p(element), STOPPED)
    library.gst_object_unref(bus)
    library.gst_object_unref(ctypes.c_void_p(element))
    return why


def _parsed(library: ctypes.CDLL, pipeline: str) -> tuple[int | None, str]:
    error = _ErrorPointer()
    element = library.gst_parse_launch_full(pipeline.encode(), None, FATAL_ERRORS, ctypes.byref(error))
    return element, _text(error)


def _text(error: ctypes._Pointer[_Error]) -> str:
    """Its words without a full stop, never a description's own, which may hold a password."""
    return " ".join((error.contents.message or b"").decode(errors="replace").split()).rstrip(".") if error else ""
