"""The index of a bag of ROS 1, made anew for one that lacks it: by what stands in and behind each of its chunks.

A record is a header, of fields ``NAME=VALUE``, and data, each with its length before it. The recorder writes chunks of
messages, behind each the times of those, and at the end what the chunks hold.
"""

from __future__ import annotations

import bz2
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple

MAGIC = b"#ROSBAG V2.0\n"
BAG, INDEX, CHUNK, CHUNK_INFO, CONNECTION = 3, 4, 5, 6, 7


class _Record(NamedTuple):
    """One record: its fields, where it begins and ends, and where its data begin."""

    fields: dict[bytes, bytes]
    at: int
    data_at: int
    end: int

    @property
    def kind(self) -> int:
        return self.fields.get(b"op", b"\0")[0]

    def number(self, name: bytes) -> int:
        return int.from_bytes(self.fields[name], "little")


@dataclass
class _Chunk:
    """A chunk: where it is, and of each connection how many messages, and the first and last time of all."""

    at: int
    counts: dict[int, int] = field(default_factory=dict)
    times: list[bytes] = field(default_factory=list)


@dataclass
class Found:
    """What a bag holds before its cut.

    whole: up to where its chunks and their indices are whole; first: where its first record ends
    connections: the records that describe each, by number
    """

    first: int = 0
    whole: int = 0
    chunks: list[_Chunk] = field(default_factory=list)
    connections: dict[int, bytes] = field(default_factory=dict)

    def head(self) -> bytes:
        """The beginning of the bag, as long as its own, with the place of the index."""
        counts = {b"conn_count": len(self.connections), b"chunk_count": len(self.chunks)}
        fields = {name: value.to_bytes(4, "little") for name, value in counts.items()}
        header = _header({b"op": bytes([BAG]), b"index_pos": self.whole.to_bytes(8, "little"), **fields})
        room = self.first - len(MAGIC) - len(header) - 4
        return MAGIC + header + room.to_bytes(4, "little") + b" " * room

    def tail(self) -> bytes:
        """The index: the connections, then the chunks."""
        return b"".join([*self.connections.values(), *map(_info, self.chunks)])


def _info(chunk: _Chunk) -> bytes:
    ordered = sorted(chunk.times, key=lambda time: struct.unpack("<LL", time))
    fields = {b"op": bytes([CHUNK_INFO]), b"ver": struct.pack("<L", 1), b"chunk_pos": struct.pack("<Q", chunk.at)}
    fields |= {b"start_time": ordered[0], b"end_time": ordered[-1], b"count": struct.pack("<L", len(chunk.counts))}
    data = b"".join(struct.pack("<LL", *pair) for pair in chunk.counts.items())
    return _header(fields) + struct.pack("<L", len(data)) + data


def _header(fields: dict[bytes, bytes]) -> bytes:
    inside = b"".join(struct.pack("<L", len(k) + 1 + len(v)) + k + b"=" + v for k, v in fields.items())
    return struct.pack("<L", len(inside)) + inside


def scanned(data: BinaryIO, there: int) -> Found:
    """Look through a bag of ``there`` bytes up to where it was cut."""
    found = Found()
    if data.read(len(MAGIC)) != MAGIC:
        return found
    open_chunk: _Chunk | None = None
    for record in _records(data, len(MAGIC), there):
        if record.end > there and record.kind in (BAG, INDEX):
            break
        if record.kind == BAG and not found.first:
            found.first = found.whole = record.end
        elif record.kind == INDEX and open_chunk is not None:
            data.seek(record.data_at)
            entries = data.read(record.end - record.data_at)
            open_chunk.counts[record.number(b"conn")] = record.number(b"count")
            open_chunk.times += [entries[at : at + 8] for at in range(0, len(entries), 12)]
        elif found.first:
            _close(data, found, open_chunk, record.at)
            open_chunk = _Chunk(record.at) if record.kind == CHUNK else None
    return found


def _close(data: BinaryIO, found: Found, chunk: _Chunk | None, end: int) -> None:
    """A chunk and all that is behind it are there: take it."""
    if chunk is None or not chunk.times:
        return
    if {*chunk.counts} - {*found.connections}:
        _learn(data, found, chunk)
    if {*chunk.counts} <= {*found.connections}:
        found.chunks.append(chunk)
        found.whole = end


def _learn(data: BinaryIO, found: Found, chunk: _Chunk) -> None:
    """Take the connections that a chunk describes."""
    record = next(_records(data, chunk.at, 2**63))
    data.seek(record.data_at)
    packed = data.read(record.end - record.data_at)
    inside = _unpack(record.fields.get(b"compression", b"none"))(packed)
    for part in _records(io.BytesIO(inside), 0, len(inside)):
        if part.kind == CONNECTION:
            found.connections[part.number(b"conn")] = inside[part.at : part.end]


def _unpack(compression: bytes) -> Callable[[bytes], Any]:
    if compression == b"bz2":
        return bz2.decompress
    if compression == b"lz4":
        from diinn.runtime.util.rosbags_library import lz4

        return lz4
    return bytes


def _records(data: BinaryIO, at: int, there: int) -> Iterator[_Record]:
    """The records from a place on; of the last one the data may end behind what is ``there``."""
    while True:
        data.seek(at)
        length = data.read(4)
        if len(length) < 4 or at + 8 + int.from_bytes(length, "little") > there:
            return
        header = data.read(int.from_bytes(length, "little"))
        data_length = data.read(4)
        if len(data_length) < 4:
            return
        data_at = at + 8 + len(header)
        end = data_at + int.from_bytes(data_length, "little")
        yield _Record(dict(_fields(header)), at, data_at, end)
        if end > there:
            return
        at = end


def _fields(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 4 <= len(header):
        length = int.from_bytes(header[at : at + 4], "little")
        name, _, value = header[at + 4 : at + 4 + length].partition(b"=")
        yield name, value
        at += 4 + length
