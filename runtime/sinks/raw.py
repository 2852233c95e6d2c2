"""Raw frames for other programs: a pipe, or shared memory."""

from __future__ import annotations

import logging
import os
import sys

from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.geometry.grid import Size
from diinn.runtime.sinks.files import fitted
from diinn.runtime.sinks.shared_memory import SharedWriter
from diinn.runtime.stream.result import QUALITIES, Result
from diinn.runtime.stream.sink import Sink
from diinn.runtime.util.once import Once

log = logging.getLogger(__name__)


class Pipe(Sink):
    """Frames one after another on standard output: height · width · 3 bytes each, BGR, no header.

    All have the size of the first. BrokenPipeError when the reader is gone.
    """

    where = "-"

    def __init__(self) -> None:
        if sys.stdout is None:
            raise InputError("--output - writes to standard output, which is closed: name another --output")
        if sys.stdout.isatty():
            raise InputError("--output - writes raw frames, standard output is a terminal: pipe it into a program")
        self._file = os.dup(sys.stdout.fileno())
        self._size: Size | None = None
        self._logged = Once()

    def write(self, result: Result) -> None:
        image = result.image
        size = (image.shape[1], image.shape[0])
        if self._size is None:
            self._size = size
            log.warning("raw frames on standard output: BGR, %dx%d, %d bytes each", *size, image.nbytes)
        elif size != self._size:
            image = fitted(result, self._size, "standard output", self._logged)
        rest = memoryview(image.tobytes())
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise DiinnError(f"cannot write raw frames to standard output: {error.strerror}") from None

    def close(self, *, failed: bool = False) -> None:
        os.close(self._file)


class SharedMemory(Sink):
    """One stream in POSIX shared memory; ``shared_memory`` documents the segment."""

    def __init__(self, name: str, camera: str, view: str) -> None:
        self.where = f"shm://{name}"
        self._writer = SharedWriter(name, camera, view)

    def write(self, result: Result) -> None:
        frame = result.frame
        quality = QUALITIES.index(result.quality)
        self._writer.publish(result.image, frame.sequence, frame.captured, frame.arrived, quality)

    def close(self, *, failed: bool = False) -> None:
        self._writer.close()
