"""What decoders silently drop of image files, read from their headers.

That is further pictures, transparency and more than 8 bits; and whether a file lacks its end, which decoders fill in.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

PNG = b"\x89PNG\r\n\x1a\n"
GIFS = (b"GIF87a", b"GIF89a")
_TIFF = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}
_SUBFILE, _BITS, _KIND, _SAMPLES, _EXTRA = 254, 258, 262, 277, 338  # TIFF's tags, NewSubfileType to ExtraSamples
_RGB = 2  # of PhotometricInterpretation; 0 and 1 are grey
_NO_PICTURE = 5  # NewSubfileType's bits for a thumbnail and a mask
ASSOCIATED, UNASSOCIATED = 1, 2  # kinds of alpha in TIFF: colours multiplied by it, or not
MOST_PAGES = 10_000
JPEG_ALONE = (0x01, *range(0xD0, 0xD9))  # JPEG's markers without a segment
_SCAN, _APP2, _MPF = 0xDA, 0xE2, b"MPF\0"  # JPEG's, and what an APP2 with a list of pictures begins with
_PICTURES, _SMALLER = 0xB002, 1  # MPF's tag of that list; the kind of those that are a picture once more, smaller
_GAIN_MAP = re.compile(rb"hdr-?gain-?map|iso:ts:21496", re.IGNORECASE)  # in a JPEG whose second picture is no picture


@dataclass(frozen=True)
class Facts:
    """Of one image file.

    pictures: how many it holds, frames or pages; alpha: whether it has transparency; deep: more than 8 bits a channel
    alpha_kind: TIFF's, one of ``ASSOCIATED``, ``UNASSOCIATED`` or 0; alpha_at: where in the file that is written
    """

    pictures: int = 1
    alpha: bool = False
    deep: bool = False
    alpha_kind: int = 0
    alpha_at: int = 0


def facts(data: bytes) -> Facts | None:
    """What the first bytes state; None of a format that is not parsed here.

    Plain ``Facts`` for a damaged file: its decoder reports that.
    """
    try:
        if data.startswith(PNG):
            return _png(data)
        if data[:4] in _TIFF:
            return _tiff(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
    except (struct.error, IndexError, KeyError):
        return Facts()
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and length of the chunks of a PNG, as far as they are whole."""
    at = len(PNG)
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8], at + 8, length
        at += 12 + length


def _png(data: bytes) -> Facts:
    pictures, alpha = 1, data[25] in (4, 6)
    for name, at, _ in _chunks(data):
        if name == b"acTL":
            pictures = int.from_bytes(data[at : at + 4], "big")
        alpha = alpha or name == b"tRNS"
        if name == b"IDAT":
            break
    return Facts(pictures, alpha, data[24] == 16)


def _segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Markers of a JPEG up to its scan, and where what they hold begins."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF or marker in JPEG_ALONE:  # bytes that fill, and markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        yield marker, at + 4
        if marker == _SCAN:
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _jpeg(data: bytes) -> Facts:
    for marker, at in _segments(data):
        if marker == _APP2 and data.startswith(_MPF, at) and not _GAIN_MAP.search(data):
            return Facts(_listed(data, at + len(_MPF)))
    return Facts()


def _listed(data: bytes, start: int) -> int:
    """How many pictures a Multi-Picture Format lists, whose header, as TIFF's, is at ``start``."""
    order = _TIFF[data[start : start + 4]]
    at = start + _offset(data, order + "I", start + 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    for place in range(at + 2, at + 2 + 12 * count, 12):
        tag, _, size, where = struct.unpack_from(order + "HHII", data, place)
        if tag == _PICTURES:
            ends = range(start + where, start + where + min(size, 16 * MOST_PAGES), 16)
            return sum(_offset(data, order + "I", end) >> 16 & 0xFF != _SMALLER for end in ends)
    return 1


def _webp(data: bytes) -> Facts:
    if data[12:16] == b"VP8L":  # width and height in 14 bits each, then whether alpha is used
        return Facts(alpha=bool(data[24] & 0x10))
    if data[12:16] != b"VP8X":
        return Facts()
    at, pictures = 12, 0
    while at + 8 <= len(data):
        pictures += data[at : at + 4] == b"ANMF"
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + length + length % 2
    return Facts(max(1, pictures), bool(data[20] & 0x10))


def _tiff(data: bytes) -> Facts:
    order, big = _TIFF[data[:4]], data[2:3] == b"+" or data[3:4] == b"+"
    counted, entry = ("Q", 20) if big else ("H", 12)
    pointer = "Q" if big else "I"
    (at,) = struct.unpack_from(order + pointer, data, 8 if big else 4)
    seen: set[int] = set()
    found = Facts(pictures=0)
    while at and at not in seen and len(seen) < MOST_PAGES:
        seen.add(at)
        (count,) = struct.unpack_from(order + counted, data, at)
        first = at + struct.calcsize(counted)
        tags = {}
        for place in range(first, first + min(count, 65535) * entry, entry):
            tag, kind = struct.unpack_from(order + "HH", data, place)
            if tag in (_SUBFILE, _BITS, _KIND, _SAMPLES, _EXTRA):
                (many,) = struct.unpack_from(order + pointer, data, place + 4)
                inline = place + (12 if big else 8)
                size = {3: 2, 4: 4}.get(kind, 1)
                where = inline if many * size <= struct.calcsize(pointer) else _offset(data, order + pointer, inline)
                tags[tag] = (struct.unpack_from(order + {3: "H", 4: "I"}.get(kind, "B"), data, where)[0], where)
        if not tags.get(_SUBFILE, (0, 0))[0] & _NO_PICTURE:
            if not found.pictures:
                kind, where = tags.get(_EXTRA, (0, 0))
                samples, colours = tags.get(_SAMPLES, (1, 0))[0], {0: 1, 1: 1, _RGB: 3}.get(tags.get(_KIND, (9, 0))[0])
                alpha = _EXTRA in tags or (colours is not None and samples > colours)
                found = Facts(0, alpha, tags.get(_BITS, (1, 0))[0] > 8, kind, where)
            found = Facts(found.pictures + 1, found.alpha, found.deep, found.alpha_kind, found.alpha_at)
        at = _offset(data, order + pointer, first + count * entry)
    return found if found.pictures else Facts()


def _offset(data: bytes, form: str, at: int) -> int:
    return int(struct.unpack_from(form, data, at)[0])


def as_associated(data: bytes, found: Facts) -> bytes:
    """A TIFF whose alpha is marked as associated, so that its decoder leaves the colours unchanged."""
    low = found.alpha_at + (data[:1] == b"M")
    return data[:low] + bytes([ASSOCIATED]) + data[low + 1 :]


def cut_short(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end or a PNG chunk is damaged; decoders fill in without a warning."""
    if data.startswith(PNG):
        return _png_damaged(data)
    if not data.startswith(b"\xff\xd8"):
        return False
    scan = next((at for marker, at in _segments(data) if marker == _SCAN), None)
    return scan is None or data.find(b"\xff\xd9", scan) < 0


def _png_damaged(data: bytes) -> bool:
    for name, at, length in _chunks(data):
        end = at + length
        if zlib.crc32(data[at - 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return True
        if name == b"IEND":
            return False
    return True
