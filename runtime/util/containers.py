"""The length that a video file's container states: shows a file that was cut short, or never finished.

AVI, MP4 and MOV, Matroska and WebM state how many bytes belong to them; others do not. Numbers of frames are no
evidence: containers count by time, and hidden or empty packets too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
SLACK = 16  # bytes
_UNFINISHED_RIFF = (0, 0xFFFFFFFF)  # what writers put there before they know


@dataclass(frozen=True)
class Extent:
    """Bytes of a video file.

    there: in the file; stated: by its container, None where it states nothing
    finished: whether it was written to its end, as far as can be seen: sizes are stated, there is an index
    fragmented: whether each part of it has an index of its own, so that no number counts all its frames
    """

    there: int
    stated: int | None = None
    finished: bool = True
    fragmented: bool = False

    @property
    def cut_short(self) -> bool:
        """Whether bytes are missing at the end; some writers err by a few."""
        return self.stated is not None and self.there + SLACK < self.stated


def extent(path: Path) -> Extent:
    """The extent of a video file; OSError where it cannot be read."""
    there = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            return _riff(file, there)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"):
            return _boxes(file, there)
        if head[:4] == _EBML:
            return _matroska(file, there)
    return Extent(there)


def _riff(file: BinaryIO, there: int) -> Extent:
    """AVI: one RIFF of up to a gigabyte after another."""
    at, indexed = 0, False
    while at + 12 <= there:
        file.seek(at)
        head = file.read(12)
        if head[:4] != b"RIFF":  # other data was appended
            return Extent(there, at, indexed)
        size = int.from_bytes(head[4:8], "little")
        if size in _UNFINISHED_RIFF:
            return Extent(there, None, False)
        end = at + 8 + size + size % 2
        indexed = indexed or _has_chunk(file, b"idx1", at + 12, min(end, there))
        at = end
    return Extent(there, at - 1 if at == there + 1 else at, indexed)  # not all write the last byte of padding


def _has_chunk(file: BinaryIO, name: bytes, at: int, end: int) -> bool:
    while at + 8 <= end:
        file.seek(at)
        head = file.read(8)
        if head[:4] == name:
            return True
        size = int.from_bytes(head[4:8], "little")
        at += 8 + size + size % 2
    return False


def _boxes(file: BinaryIO, there: int) -> Extent:
    """MP4, MOV: boxes of a size and a name; ``moov`` is the index."""
    at, indexed, fragmented = 0, False, False
    while at + 8 <= there:
        file.seek(at)
        head = file.read(16)
        size, name = int.from_bytes(head[:4], "big"), head[4:8]
        if not name.isalnum():  # other data was appended
            return Extent(there, at, indexed)
        indexed = indexed or name == b"moov"
        fragmented = fragmented or name == b"moof"
        if size == 0:  # up to the end
            return Extent(there, None, indexed)
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:
            return Extent(there, None, indexed)
        at += size
    return Extent(there, at, indexed and at == there, fragmented)


def _matroska(file: BinaryIO, there: int) -> Extent:
    """Matroska, WebM: a header, then one segment, whose size is not known before it is finished."""
    file.seek(4)
    size = _number(file)
    if size is None:
        return Extent(there, None, False)
    file.seek(size, 1)
    if file.read(4) != _SEGMENT:
        return Extent(there, None, False)
    size = _number(file)
    return Extent(there, None, False) if size is None else Extent(there, file.tell() + size)


def _number(file: BinaryIO) -> int | None:
    """A number of EBML, whose first bits give its length; None for the value that means unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    value = int.from_bytes(first + file.read(length - 1), "big") & ~(1 << 7 * length)
    return None if value == (1 << 7 * length) - 1 else value
