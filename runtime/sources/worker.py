"""One camera in a process of its own, which can be ended while it hangs; ``camera.Worker`` starts it.

Takes a socket, a file of memory and the parent's process id. Reads what to open from the socket (a line of JSON),
writes frames into the memory, which both processes map, and announces them on the socket, a line of JSON each:
``{"ready"}`` when started, ``{"rate"}`` when opened,
``{"at", "shape", "captured", "arrived", "count", "undecodable"}`` for a frame, ``{"failed"}`` at the end; of a topic of
ROS ``{"info"}`` where its camera is another, and ``"header"`` with a frame.
The parent answers each frame with a byte once it has copied it. ``LEAVE`` asks it to end by itself.
"""

from __future__ import annotations

import json
import mmap
import os
import selectors
import signal
import socket
import sys
import traceback
from typing import Any

import cv2
import numpy as np
from diinn.runtime.errors import InputError
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.sources.capture import FFMPEG_OPTIONS, LEAVE, CaptureRequest, OpenCapture, open_capture
from diinn.runtime.util.processes import die_with

PLACES = 3  # frames in the memory: one being written, two the parent may not have copied yet


class Wire:
    """The worker's end."""

    def __init__(self, connection: socket.socket, memory: int) -> None:
        self._connection, self._memory = connection, memory
        self._map: mmap.mmap | None = None
        self._place = self._unanswered = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(connection, selectors.EVENT_READ)

    def send(self, **message: Any) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def give(self, image: UInt8, captured: float, arrived: float, count: int, undecodable: int, **more: Any) -> bool:
        """Hand a frame over; False if the parent has not copied the last ones yet."""
        self._receive(0)
        if self._unanswered >= PLACES - 1:
            return False
        if self._map is None or len(self._map) < PLACES * image.nbytes:
            self._grow(PLACES * image.nbytes)
        assert self._map is not None
        self._place = (self._place + 1) % PLACES
        at = self._place * (len(self._map) // PLACES)
        np.frombuffer(self._map, np.uint8, image.nbytes, at)[:] = image.reshape(-1)
        self._unanswered += 1
        times = {"captured": captured, "arrived": arrived}
        self.send(at=at, shape=image.shape, **times, count=count, undecodable=undecodable, **more)
        return True

    def _grow(self, size: int) -> None:
        while self._unanswered:  # the parent must have copied all before the memory is resized
            self._receive(None)
        if self._map is not None:
            self._map.close()
        os.ftruncate(self._memory, size)
        self._map = mmap.mmap(self._memory, size)

    def _receive(self, timeout: float | None) -> None:
        if self._selector.select(timeout):
            answers = self._connection.recv(64)
            if not answers:
                sys.exit(0)  # the parent is gone
            self._unanswered -= len(answers)


def _topic(request: CaptureRequest) -> OpenCapture:
    from diinn.runtime.sources.ros_topic import RosCapture

    return RosCapture(request)


def main() -> None:
    """Open the camera, read and hand over frames until it fails or the parent ends."""
    connection, memory, parent = map(int, sys.argv[1:])
    die_with(parent)
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides; a service manager signals all its processes
        signal.signal(number, signal.SIG_IGN)
    signal.signal(LEAVE, lambda *_: sys.exit(0))
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", FFMPEG_OPTIONS)
    cv2.setNumThreads(1)
    with socket.socket(fileno=connection) as line, line.makefile("rb") as lines:
        wire = Wire(line, memory)
        device: OpenCapture | None = None
        try:
            request = CaptureRequest.from_json(lines.readline())
            wire.send(ready=True)
            device = _topic(request) if request.bus else open_capture(request)
            wire.send(rate=device.rate)
            count, info = 0, None
            while True:
                image, captured, arrived = device.read()
                count += 1
                if device.info is not info:
                    info = device.info
                    wire.send(info=info)
                header = {"header": device.header} if device.header else {}
                wire.give(image, captured, arrived, count, device.undecodable, **header)
        except (InputError, cv2.error) as error:
            wire.send(failed=" ".join(str(error).split()))
        except ConnectionError:  # the parent is gone
            sys.exit(0)
        except Exception as error:  # no memory, an error of a driver: sent to the parent
            traceback.print_exc()  # shown at --log-level debug only
            wire.send(failed=f"failed with {type(error).__name__}: {' '.join(str(error).split())[:300]}")
        finally:
            if device is not None:
                device.close()
