"""Frames in POSIX shared memory: one process writes, any number read without copying, in any language.

The segment ``/dev/shm/NAME`` (``shm_open("/NAME")``), little-endian, holds a header, then ``slots`` slots of ``stride``
bytes, each a slot header and the pixels:

======== ====== ======== =====================================================
header   offset type     meaning
======== ====== ======== =====================================================
magic         0 char[8]  ``DIINNSHM``
version       8 uint32   1; 0 before the first frame, when the rest is not valid yet
first        12 uint32   bytes from the segment's start to slot 0
slots        16 uint32   how many there are
pixels       20 uint32   bytes from a slot's start to its pixels
stride       24 uint64   bytes from a slot to the next
latest       32 uint64   frames published so far; 0: none yet
closed       40 uint32   1: no more will come here; open the name again, if it is there
camera       64 char[64] UTF-8, zero-terminated
view        128 char[64] UTF-8, zero-terminated
======== ====== ======== =====================================================

======== ====== ======== =====================================================
slot     offset type     meaning
======== ====== ======== =====================================================
number        0 uint64   2n when it holds frame n (from 1), odd while it is being written
width         8 uint32   pixels
height       12 uint32   pixels
row          16 uint32   bytes from a row to the next: 3 · width
format       20 uint32   1: BGR, 8 bits each
sequence     24 uint64   the frame's number at its camera, from 0
captured     32 float64  wall clock, seconds since the epoch
arrived      40 float64  CLOCK_MONOTONIC, seconds
quality      48 uint32   0: full, 1: reduced, 2: bicubic
======== ====== ======== =====================================================

A reader checks the numbers of the header, once, and those of a slot before it uses them: any process can make such a
file. To read: n = latest; if n is above 0, frame n is in slot (n − 1) mod ``slots``. Use its pixels in place, then look
at ``number``: if it is still 2n, what was read is whole. A slot is written again ``slots`` − 1 frames later.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import secrets
import stat
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.images.arrays import UInt8

FOLDER = Path("/dev/shm")
LONGEST_NAME = 200
MAGIC, VERSION = b"DIINNSHM", 1
HEADER = struct.Struct("<8sIIIIQQI20x64s64s")
SLOT = struct.Struct("<QIIIIQddI")
FIRST, PIXELS, SLOTS, PAGE = 4096, 64, 4, 4096
VERSION_AT, LATEST_AT, CLOSED_AT = 8, 32, 40
BGR8 = 1
MOST_SLOTS = 1024
TRIES = 100  # to take a name that other processes take and leave


@dataclass(frozen=True)
class SharedFrame:
    """One frame in place, without a copy.

    Attributes:
        image: uint8 [h, w, 3] BGR, read-only; the memory is written again some frames later, see
            ``SharedReader.still_valid``.
        number: Of the frame in the segment, from 1.
        sequence: The frame's number at its camera, from 0.
        captured: Wall clock, seconds since the epoch.
        arrived: ``time.monotonic`` seconds, at the writer.
        quality: 0: full, 1: reduced, 2: bicubic (``Result.quality``).
    """

    image: UInt8
    number: int
    sequence: int
    captured: float
    arrived: float
    quality: int


_LOCK = threading.Lock()


def _fence() -> None:
    """A memory barrier: writes before it are seen before writes after it, on processors that reorder, too.

    The first lock and unlock releases what was before, the second holds back what comes after.
    """
    with _LOCK:
        pass
    with _LOCK:
        pass


def segment(name: str) -> Path:
    """Path of the segment ``name``; InputError for a name no segment can have."""
    if len(name) > LONGEST_NAME:
        raise InputError(f"shm://{name[:20]}… is {len(name)} characters long: give a name of at most {LONGEST_NAME}")
    if not name or name.startswith(".") or {*name} & {*"/\0"}:
        raise InputError(
            f"shm://{name} is no name for shared memory: use letters, digits, - and _, such as shm://front"
        )
    return FOLDER / name


class SharedWriter:
    """Publishes frames under a name; ``close`` removes it. InputError where another process has the name."""

    def __init__(self, name: str, camera: str, view: str) -> None:
        self.path, self._camera, self._view = segment(name), camera, view
        if not FOLDER.is_dir():
            raise InputError(f"no {FOLDER} here: shm:// needs Linux; use another --output")
        self._map: mmap.mmap | None = None
        self._file = -1
        self._stride = self._count = 0
        self._take_name()

    def publish(self, image: UInt8, sequence: int, captured: float, arrived: float, quality: int) -> None:
        """One more frame, uint8 [h, w, 3] BGR."""
        if self._map is None or PIXELS + image.nbytes > self._stride:
            self._renew(image.nbytes)
        assert self._map is not None
        self._count += 1
        at = FIRST + (self._count - 1) % SLOTS * self._stride
        struct.pack_into("<Q", self._map, at, 2 * self._count - 1)
        _fence()
        height, width = image.shape[:2]
        np.frombuffer(self._map, np.uint8, image.nbytes, at + PIXELS).reshape(image.shape)[:] = image
        meta = (width, height, 3 * width, BGR8, sequence, captured, arrived, quality)
        SLOT.pack_into(self._map, at, 2 * self._count - 1, *meta)
        _fence()
        struct.pack_into("<Q", self._map, at, 2 * self._count)
        _fence()
        struct.pack_into("<Q", self._map, LATEST_AT, self._count)

    def _take_name(self) -> None:
        """Make a file under the name, marked and locked before the name appears: of several processes one gets it.

        A file that a killed process left there is marked closed and removed, never truncated: its readers keep it.
        """
        draft = FOLDER / f".diinn-{secrets.token_hex(8)}"
        try:
            self._file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.ftruncate(self._file, FIRST)
                os.pwrite(self._file, MAGIC, 0)
                self._link(draft)
            except BaseException:
                os.close(self._file)
                self._file = -1
                raise
            finally:
                draft.unlink()
        except BlockingIOError:
            raise InputError(f"shm://{self.path.name} is in use by another process: choose another name") from None
        except OSError as error:
            raise InputError(f"cannot make shm://{self.path.name}: {error.strerror}: choose another name") from None

    def _link(self, draft: Path) -> None:
        for _ in range(TRIES):
            self._leave_none()
            with contextlib.suppress(FileExistsError):  # another process was faster, and holds it or has left it
                os.link(draft, self.path)
                return
        raise BlockingIOError

    def _leave_none(self) -> None:
        """Remove what a writer left under the name; BlockingIOError if the writer still runs."""
        try:
            old = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _named(self.path, old):  # the opened file was removed meanwhile
                return
            regular = stat.S_ISREG(os.fstat(old).st_mode)
            if not regular or os.pread(old, len(MAGIC), 0) != MAGIC:
                raise InputError(
                    f"shm://{self.path.name} is another program's: choose another name, or remove {self.path}"
                )
            if os.fstat(old).st_size >= FIRST:
                os.pwrite(old, struct.pack("<I", 1), CLOSED_AT)
            self.path.unlink(missing_ok=True)
        finally:
            os.close(old)

    def _renew(self, pixels: int) -> None:
        """A segment that holds frames of ``pixels`` bytes; readers of the old one see that it ended."""
        if self._map is not None:
            self._shut()
            self._take_name()
        self._stride = -(-(PIXELS + pixels) // PAGE) * PAGE
        size = FIRST + SLOTS * self._stride
        try:
            os.posix_fallocate(self._file, 0, size)  # a full /dev/shm would end the process at the first touch
            self._map = mmap.mmap(self._file, size)
        except OSError as error:
            raise DiinnError(f"no room for shm://{self.path.name} ({size / 2**20:.0f} MiB): {error.strerror}") from None
        names = (text.encode("utf-8", "replace")[:63] for text in (self._camera, self._view))
        self._count = 0
        HEADER.pack_into(self._map, 0, MAGIC, 0, FIRST, SLOTS, PIXELS, self._stride, 0, 0, *names)
        _fence()
        struct.pack_into("<I", self._map, VERSION_AT, VERSION)

    def _shut(self) -> None:
        if self._map is not None:
            struct.pack_into("<I", self._map, CLOSED_AT, 1)
            self._map.close()
            self._map = None
        if _named(self.path, self._file):  # another process's stays
            self.path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = -1

    def close(self) -> None:
        """Mark the segment closed for its readers, and remove the name."""
        if self._file >= 0:
            self._shut()


def _named(path: Path, file: int) -> bool:
    """Whether ``path`` is the name of an open file."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(file))


class SharedReader:
    """Reads the frames that ``diinn-run --output shm://NAME`` publishes, without copying them.

    Attributes:
        camera: Name of the camera.
        view: Name of the view.

    Raises:
        InputError: No segment can have this name.
        DiinnError: There is no such segment, it is empty yet, or the file is no segment.
    """

    def __init__(self, name: str) -> None:
        self._name, path = name, segment(name)
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DiinnError(f"cannot open shm://{name}: {error.strerror}; does diinn-run write it?") from None
        try:
            self._check_owner(os.fstat(file))
            header = os.pread(file, HEADER.size, 0)
            if len(header) < HEADER.size or header[:VERSION_AT] == bytes(VERSION_AT):
                raise DiinnError(f"shm://{name} is empty yet: try again")
            magic, version, self._first, self._slots, self._pixels, self._stride, *_, camera, view = HEADER.unpack(
                header
            )
            if (magic, version) == (MAGIC, 0):
                raise DiinnError(f"shm://{name} is empty yet: try again")
            if magic != MAGIC or version != VERSION:
                raise DiinnError(f"shm://{name} holds no frames of this version: update reader and writer")
            self._size = self._checked_size(os.fstat(file).st_size)
            self._map = mmap.mmap(file, self._size, prot=mmap.PROT_READ)
        finally:
            os.close(file)
        self.camera, self.view = (text.rstrip(b"\0").decode("utf-8", "replace") for text in (camera, view))

    def _check_owner(self, found: os.stat_result) -> None:
        user = os.geteuid()
        if not stat.S_ISREG(found.st_mode) or (user and found.st_uid not in (user, 0)):
            raise DiinnError(f"shm://{self._name} is another user's, or no segment: choose another name")

    def _checked_size(self, size: int) -> int:
        """Bytes that the header describes; DiinnError unless the file holds them all."""
        needed: int = self._first + self._slots * self._stride
        sane = self._first >= HEADER.size and 0 < self._slots <= MOST_SLOTS and SLOT.size <= self._pixels < self._stride
        if not sane or (self._first | self._stride) % 8 or needed > size:
            raise DiinnError(f"shm://{self._name} is damaged, or not diinn-run's: start its writer again")
        return needed

    def _check_uncut(self) -> None:
        """DiinnError where the file was truncated: reading beyond its end would kill the process."""
        if self._map.size() < self._size:
            raise DiinnError(f"shm://{self._name} was cut short: start its writer again")

    @property
    def closed(self) -> bool:
        """Whether no more frames will come here: open the name again."""
        self._check_uncut()
        return bool(struct.unpack_from("<I", self._map, CLOSED_AT)[0])

    def newest(self, after: int = 0) -> SharedFrame | None:
        """The newest frame, in place.

        Args:
            after: ``number`` of a frame that was seen already.

        Returns:
            The frame; None if there is none with a number above ``after``.

        Raises:
            DiinnError: The segment was truncated or is damaged.
        """
        self._check_uncut()
        latest: int = struct.unpack_from("<Q", self._map, LATEST_AT)[0]
        if latest <= after:
            return None
        _fence()
        at = self._first + (latest - 1) % self._slots * self._stride
        number, width, height, row, kind, sequence, captured, arrived, quality = SLOT.unpack_from(self._map, at)
        _fence()
        if number != 2 * latest or struct.unpack_from("<Q", self._map, at)[0] != number:
            return None  # overtaken: a newer one is being written here
        if kind != BGR8 or not width or not height or row < 3 * width or row * height > self._stride - self._pixels:
            raise DiinnError(f"shm://{self._name} holds what is no frame: start its writer again")
        image: UInt8 = np.ndarray((height, width, 3), np.uint8, self._map, at + self._pixels, (row, 3, 1))
        return SharedFrame(image, latest, sequence, captured, arrived, quality)

    def still_valid(self, frame: SharedFrame) -> bool:
        """Whether ``frame`` has not been overwritten since ``newest`` returned it; check after using its pixels."""
        self._check_uncut()
        at = self._first + (frame.number - 1) % self._slots * self._stride
        _fence()
        return bool(struct.unpack_from("<Q", self._map, at)[0] == 2 * frame.number)

    def close(self) -> None:
        """Release the segment; its frames must not be used any more."""
        with contextlib.suppress(BufferError):  # a frame is still held: the mapping is released with it
            self._map.close()
