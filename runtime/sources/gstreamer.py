"""GStreamer's own errors of a pipeline: OpenCV does not report why one does not open, and tries some for ever.

The library is the one that OpenCV is linked to; where it cannot be loaded, errors are empty. Runs in a camera's worker,
which ends soon after, so errors are not freed.
"""

from __future__ import annotations

import ctypes
import os
import re
from functools import cache

GST_PARSE_FLAG_FATAL_ERRORS = 1  # also for what GStreamer would go on without, as an unknown property
GST_STATE_NULL, GST_STATE_PLAYING = 1, 4
GST_MESSAGE_ERROR = 2


class _Error(ctypes.Structure):
    """``GError`` of GLib."""

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


def parse_error(pipeline: str) -> str:
    """What keeps a description from becoming a pipeline, as ``no element "nosuch"``; empty if nothing does."""
    library = _library()
    if library is None:
        return ""
    element, why = _parsed(library, pipeline)
    if element:
        library.gst_object_unref(ctypes.c_void_p(element))
    return why


def start_error(pipeline: str, seconds: float) -> str:
    """The error that a pipeline ends with when it is started, once more; empty if none comes within ``seconds``."""
    library = _library()
    if library is None:
        return ""
    element, why = _parsed(library, pipeline)
    if not element:
        return why
    library.gst_element_set_state(ctypes.c_void_p(element), GST_STATE_PLAYING)
    bus = ctypes.c_void_p(library.gst_element_get_bus(ctypes.c_void_p(element)))
    message = library.gst_bus_timed_pop_filtered(bus, ctypes.c_uint64(round(seconds * 1e9)), GST_MESSAGE_ERROR)
    if message:
        error = _ErrorPointer()
        library.gst_message_parse_error(ctypes.c_void_p(message), ctypes.byref(error), None)
        why = _text(error)
        library.gst_mini_object_unref(ctypes.c_void_p(message))
    library.gst_element_set_state(ctypes.c_void_p(element), GST_STATE_NULL)
    library.gst_object_unref(bus)
    library.gst_object_unref(ctypes.c_void_p(element))
    return why


def _parsed(library: ctypes.CDLL, pipeline: str) -> tuple[int | None, str]:
    error = _ErrorPointer()
    element = library.gst_parse_launch_full(
        os.fsencode(pipeline), None, GST_PARSE_FLAG_FATAL_ERRORS, ctypes.byref(error)
    )
    why = _text(error)
    word = re.fullmatch(r'no element "(.*)"', why)
    if word and not re.search(rf"(^|[!(])\s*{re.escape(word[1])}([\s!)]|$)", pipeline):  # a part of a password, perhaps
        why = "a word where none belongs: put values that hold blanks into quotes"
    return element, why


def _text(error: ctypes._Pointer[_Error]) -> str:
    """An error's message without a full stop, and without a property's value, which may be a password."""
    words = (error.contents.message or b"").decode(errors="replace") if error else ""
    return " ".join(re.sub(r'( in element "[^"]*") to ".*', r"\1", words, flags=re.DOTALL).split()).rstrip(".")
