"""GStreamer itself, by its own library: what is wrong with a pipeline, and a pipeline that takes frames.

OpenCV reports neither why a pipeline does not open nor that one has failed. Some it tries for ever, and its writer
waits for ever for one that takes nothing more. The library is the one that OpenCV is linked to, where that has
GStreamer. Errors are few, and are not freed.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from fractions import Fraction
from functools import cache

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import DiinnError, InputError

REMEDY = "check the pipeline, as gst-launch-1.0 runs it alone"
GST_PARSE_FLAG_FATAL_ERRORS = 1  # also for what GStreamer would go on without, as an unknown property
GST_STATE_NULL, GST_STATE_PLAYING = 1, 4
GST_STATE_CHANGE_FAILURE = 0
GST_MESSAGE_EOS, GST_MESSAGE_ERROR = 1, 2
SECOND = 10**9  # GStreamer's times are nanoseconds
SOURCE_NAME = "diinn_frames"  # what the element is called that takes frames
FULL_SECONDS = 0.005  # between two looks whether there is room for a frame
ENDED = "ended by itself"
_OWN_SOURCE = re.compile(r"\s*(?:appsrc\b([^!]*)!)?(.*)", re.DOTALL)


class _Error(ctypes.Structure):
    """``GError`` of GLib."""

    _fields_ = (("domain", ctypes.c_uint32), ("code", ctypes.c_int), ("message", ctypes.c_char_p))


class _MiniObject(ctypes.Structure):
    """``GstMiniObject``, with which buffers and messages begin."""

    _fields_ = (
        ("type", ctypes.c_size_t),
        ("numbers", ctypes.c_int * 3),
        ("functions", ctypes.c_void_p * 3),
        ("count", ctypes.c_uint),
        ("data", ctypes.c_void_p),
    )


class _Buffer(ctypes.Structure):
    """The beginning of ``GstBuffer``."""

    _fields_ = (
        ("mini_object", _MiniObject),
        ("pool", ctypes.c_void_p),
        ("pts", ctypes.c_uint64),
        ("dts", ctypes.c_uint64),
        ("duration", ctypes.c_uint64),
    )


class _Message(ctypes.Structure):
    """The beginning of ``GstMessage``."""

    _fields_ = (("mini_object", _MiniObject), ("type", ctypes.c_int))


UInt8 = npt.NDArray[np.uint8]
_ErrorPointer = ctypes.POINTER(_Error)


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libgstreamer-1.0.so.0")
    except OSError:
        return None
    for name in ("parse_launch_full", "element_get_bus", "bus_timed_pop_filtered", "bin_get_by_name"):
        getattr(library, f"gst_{name}").restype = ctypes.c_void_p
    library.gst_buffer_new_allocate.restype = ctypes.POINTER(_Buffer)
    if not library.gst_init_check(None, None, None):
        return None
    return library


@cache
def _app_library() -> ctypes.CDLL | None:
    """The library of the element that takes frames; it comes with that."""
    try:
        library = ctypes.CDLL("libgstapp-1.0.so.0")
    except OSError:
        return None
    library.gst_app_src_get_current_level_bytes.restype = ctypes.c_uint64
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
    message = library.gst_bus_timed_pop_filtered(bus, _nanoseconds(seconds), GST_MESSAGE_ERROR)
    if message:
        why = _reported(library, message)
    library.gst_element_set_state(ctypes.c_void_p(element), GST_STATE_NULL)
    library.gst_object_unref(bus)
    library.gst_object_unref(ctypes.c_void_p(element))
    return why


class AppSrcPipeline:
    """A pipeline that frames are pushed into, all of one size; GStreamer's own threads do the rest.

    No call waits longer than its ``seconds``: what blocks within GStreamer is left behind in a thread of its own.

    Args:
        name: What messages call it.
        description: What comes after the frames, as gst-launch-1.0 takes it; an ``appsrc`` in front keeps its
            properties.
        size: (width, height) of the frames.
        rate: Frames a second, as the pipeline's caps state it; the frames' own times may be others.
        seconds: How long it may take to start.

    Raises:
        InputError: It cannot be made or does not start.
    """

    def __init__(self, name: str, description: str, size: tuple[int, int], rate: float, seconds: float) -> None:
        self._library, self._app = _libraries()
        self._name, self._duration, self._failed = name, round(SECOND / rate), False
        pipeline, why = _parsed(self._library, with_appsrc(description, size, rate))
        if not pipeline:
            raise InputError(self._message(why))
        self._pipeline = ctypes.c_void_p(pipeline)
        self._bus = ctypes.c_void_p(self._library.gst_element_get_bus(self._pipeline))
        self._source = ctypes.c_void_p(self._library.gst_bin_get_by_name(self._pipeline, SOURCE_NAME.encode()))
        assert self._source
        started = self._set_state(GST_STATE_PLAYING, seconds)
        if started is None:
            raise InputError(self._message(f"did not start within {seconds:g} s"))
        if started == GST_STATE_CHANGE_FAILURE:
            why = self._ended(0) or "did not start"
            self._free(seconds)
            raise InputError(self._message(why))

    def push(self, image: UInt8, at: float, seconds: float) -> None:
        """Hand a frame over as soon as there is room for it.

        Args:
            image: uint8 [h, w, 3] BGR.
            at: Its time from the pipeline's start, in seconds.
            seconds: How long there may be no room.

        Raises:
            DiinnError: The pipeline has failed or ended, or takes no frame.
        """
        until = time.monotonic() + seconds
        while not (why := self._ended(0)) and self._app.gst_app_src_get_current_level_bytes(self._source):
            if time.monotonic() > until:
                why = f"took no frame for {seconds:g} s"
                break
            time.sleep(FULL_SECONDS)
        if why:
            self._failed = True
            raise DiinnError(self._message(why))
        rows = _rows(image)
        size = ctypes.c_size_t(rows.nbytes)
        buffer = self._library.gst_buffer_new_allocate(None, size, None)
        if not buffer:
            raise DiinnError(f"no memory for a frame of {rows.nbytes} bytes: make the view smaller")
        self._library.gst_buffer_fill(buffer, ctypes.c_size_t(0), ctypes.c_void_p(rows.ctypes.data), size)
        buffer.contents.pts, buffer.contents.duration = round(at * SECOND), self._duration
        self._app.gst_app_src_push_buffer(self._source, buffer)  # which owns the buffer from here on

    def close(self, seconds: float) -> None:
        """Tell it that no frame follows, so that it finishes its files, wait until it has ended, and free it.

        Raises:
            DiinnError: It has failed, or did not end within ``seconds``.
        """
        why = ""
        if not self._failed:
            self._app.gst_app_src_end_of_stream(self._source)
            why = self._ended(seconds) or f"did not end within {seconds:g} s"
        freed = self._free(seconds)
        if why not in ("", ENDED):
            raise DiinnError(self._message(why))
        if not freed:
            raise DiinnError(self._message(f"did not stop within {seconds:g} s"))

    def _message(self, why: str) -> str:
        return f"pipeline {self._name}: {why}" + (f": {REMEDY}" if why != ENDED else "")

    def _ended(self, seconds: float) -> str:
        """Why the pipeline has ended, ``ENDED`` where without an error; empty if it has not within ``seconds``."""
        message = self._library.gst_bus_timed_pop_filtered(
            self._bus, _nanoseconds(seconds), GST_MESSAGE_ERROR | GST_MESSAGE_EOS
        )
        if not message:
            return ""
        if _Message.from_address(message).type == GST_MESSAGE_ERROR:
            return _reported(self._library, message)
        self._library.gst_mini_object_unref(ctypes.c_void_p(message))
        return ENDED

    def _free(self, seconds: float) -> bool:
        """Stop and free it; False where that takes longer."""
        if self._set_state(GST_STATE_NULL, seconds) is None:
            return False
        for element in (self._source, self._bus, self._pipeline):
            self._library.gst_object_unref(element)
        return True

    def _set_state(self, state: int, seconds: float) -> int | None:
        """GStreamer's answer; None where that takes longer, and a thread that waits for it is left behind."""
        answers: list[int] = []
        thread = threading.Thread(
            target=lambda: answers.append(self._library.gst_element_set_state(self._pipeline, state)),
            name="diinn-gstreamer",
            daemon=True,
        )
        thread.start()
        thread.join(seconds)
        return answers[0] if answers else None


def with_appsrc(description: str, size: tuple[int, int], rate: float) -> str:
    """The whole pipeline, with the element that takes frames; InputError where GStreamer is not here.

    Args:
        description: What comes after the frames; an ``appsrc`` in front keeps its properties.
        size: (width, height) of the frames.
        rate: Frames a second.
    """
    _libraries()
    own, rest = _OWN_SOURCE.sub(r"\1", description, 1), _OWN_SOURCE.sub(r"\2", description, 1)
    if re.search(r"\bname\s*=", own):
        raise InputError("gst:// with a name for its appsrc: leave name= out")
    fraction = Fraction(rate).limit_denominator(1001)
    width, height = size
    caps = f"video/x-raw,format=BGR,width={width},height={height},framerate={fraction.numerator}/{fraction.denominator}"
    return f'appsrc {own} name={SOURCE_NAME} format=time caps="{caps}" ! videoconvert ! {rest}'


def _libraries() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    library, app = _library(), _app_library()
    if library is None or app is None:
        raise InputError(
            "GStreamer is not installed: apt-get install gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
        )
    return library, app


def _rows(image: UInt8) -> UInt8:
    """An image whose rows begin at multiples of 4 bytes, as GStreamer's do."""
    flat = image.reshape(len(image), -1)
    short = -flat.shape[1] % 4
    return np.ascontiguousarray(np.pad(flat, ((0, 0), (0, short))) if short else flat)


def _nanoseconds(seconds: float) -> ctypes.c_uint64:
    return ctypes.c_uint64(round(seconds * SECOND))


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


def _reported(library: ctypes.CDLL, message: int) -> str:
    """What a message of an error says; the message is freed."""
    error, details = _ErrorPointer(), ctypes.c_char_p()
    library.gst_message_parse_error(ctypes.c_void_p(message), ctypes.byref(error), ctypes.byref(details))
    library.gst_mini_object_unref(ctypes.c_void_p(message))
    reason = re.search(rb"reason ([a-z-]+)", details.value or b"")  # beside "Internal data stream error"
    return _text(error) + (f" ({reason[1].decode()})" if reason else "")


def _text(error: ctypes._Pointer[_Error]) -> str:
    """An error's message without a full stop, and without a property's value, which may be a password."""
    words = (error.contents.message or b"").decode(errors="replace") if error else ""
    return " ".join(re.sub(r'( in element "[^"]*") to ".*', r"\1", words, flags=re.DOTALL).split()).rstrip(".")
