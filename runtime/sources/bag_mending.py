"""Bags without their end: a recorder that lost its power, or still runs, leaves the messages but no index of them."""

from __future__ import annotations

import io
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from diinn.runtime.sources import bag_index
from diinn.runtime.util import rosbags_library

_MAGIC = b"\x89MCAP0\r\n"
# A footer without a summary: its operation and length, three numbers of zero, and the magic that ends a file.
_FOOTER = b"\x02" + (20).to_bytes(8, "little") + bytes(20) + _MAGIC
_FOOTER_RECORD, _HEADER_RECORD, _DATA_END = 0x02, 0x01, 0x0F


@dataclass(frozen=True)
class Mended:
    """What can be read of a file that lacks its end.

    part: an open reader as of rosbags; trouble: what is missing
    """

    part: Any
    trouble: str


def mended(file: Path) -> Mended | None:
    """A reader of a damaged file of a bag; None where none is known."""
    try:
        if file.suffix == ".mcap":
            return _mcap(file)
        if file.suffix == ".db3":
            return _sqlite(file)
        if file.suffix == ".bag":
            return _ros1(file)
    except rosbags_library.failures():
        return None
    return None


def _mcap(file: Path) -> Mended | None:
    there = file.stat().st_size
    with file.open("rb") as data:
        whole = _whole_records(data, there)
    if not whole:
        return None
    reader = rosbags_library.opened(_Ended(file, b"", whole, _FOOTER))
    return Mended(_Scanned(reader), _trouble(file, there, whole))


def _trouble(file: Path, there: int, whole: int) -> str:
    return (
        f"{str(file)!r} is cut short or being written: of its {there} bytes {whole} are whole records, "
        "what they hold is taken"
    )


def _ros1(file: Path) -> Mended | None:
    """A bag of ROS 1 with an index made from what follows each of its chunks; the last one may lack that."""
    there = file.stat().st_size
    with file.open("rb") as data:
        found = bag_index.scanned(data, there)
    if not found.chunks:
        return None
    reader = rosbags_library.opened(_Ended(file, found.head(), found.whole, found.tail()))
    return Mended(reader, _trouble(file, there, found.whole))


def _whole_records(data: BinaryIO, there: int) -> int:
    """Where the last whole record ends before the footer, 0 for a file that is no MCAP."""
    if data.read(len(_MAGIC)) != _MAGIC:
        return 0
    at = len(_MAGIC)
    while True:
        head = data.read(9)
        if (
            len(head) < 9
            or head[0] in (_FOOTER_RECORD, _DATA_END)
            or (at == len(_MAGIC)) != (head[0] == _HEADER_RECORD)
        ):
            break
        end = at + 9 + int.from_bytes(head[1:], "little")
        if end > there:
            break
        at = end
        data.seek(at)
    return at if at > len(_MAGIC) else 0


class _Ended:
    """A path as rosbags takes it: the first bytes of a file, their beginning replaced, with others behind them."""

    def __init__(self, file: Path, head: bytes, whole: int, tail: bytes) -> None:
        self._file, self._parts, self.suffix = file, (head, whole, tail), file.suffix

    def __str__(self) -> str:
        return str(self._file)

    def exists(self) -> bool:
        return self._file.exists()

    def is_dir(self) -> bool:
        return False

    def open(self, mode: str = "rb") -> io.BufferedReader:
        return io.BufferedReader(_Joined(self._file, *self._parts), 2**16)


class _Joined(io.RawIOBase):
    """Some bytes in place of a file's own, its others up to a place, and some more, as one file."""

    def __init__(self, file: Path, head: bytes, first: int, more: bytes) -> None:
        self._data, self._head, self._first, self._more, self._at = file.open("rb", buffering=0), head, first, more, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._first + len(self._more)}[whence]
        self._at = max(0, origin + to)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self._at < len(self._head):
            found = self._head[self._at :][: len(view)]
            count = len(found)
            view[:count] = found
        elif self._at < self._first:
            self._data.seek(self._at)
            count = self._data.readinto(view[: self._first - self._at])
        else:
            found = self._more[self._at - self._first :][: len(view)]
            count = len(found)
            view[:count] = found
        self._at += count
        return count

    def close(self) -> None:
        self._data.close()
        super().close()


class _Scanned:
    """A reader of rosbags for a file without an index: messages as they stand in it."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self.connections = reader.connections
        self.start_time, self.end_time, self.message_count = reader.start_time, reader.end_time, reader.message_count

    def messages(
        self, connections: Collection[Any], start: int | None, stop: int | None
    ) -> Iterator[tuple[Any, int, bytes]]:
        yield from self._reader.storage.messages_scan(connections, start, stop)

    def close(self) -> None:
        self._reader.close()


def _sqlite(file: Path) -> Mended | None:
    try:
        reader = _Database(file)
    except sqlite3.Error:
        return None
    trouble = (
        f"{str(file)!r} is cut short or being written: the {reader.message_count} messages before its cut are taken"
    )
    return Mended(reader, trouble)


class _Database:
    """A database of rosbag2 that lacks its end: its rows up to the first that cannot be read, in their order."""

    def __init__(self, file: Path) -> None:
        self._uri = f"{file.absolute().as_uri()}?immutable=1"
        counts: Counter[int] = Counter()
        times: list[int] = []
        with closing(self._opened()) as database:
            topics = database.execute("SELECT id, name, type FROM topics").fetchall()
        for topic, time, _ in self._rows("0"):
            counts[topic] += 1
            times = [min(time, *times), max(time, *times)] if times else [time, time]
        self.connections = [
            rosbags_library.connection(number, name, kind, counts[number]) for number, name, kind in topics
        ]
        self.message_count = counts.total()
        self.start_time, self.end_time = (times[0], times[1] + 1) if times else (2**63 - 1, 0)

    def _opened(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._uri, uri=True, check_same_thread=False)
        database.execute(
            "PRAGMA writable_schema=ON"
        )  # otherwise a file with fewer pages than it states is refused whole
        return database

    def _rows(self, content: str) -> Iterator[tuple[int, int, bytes]]:
        with closing(self._opened()) as database:
            rows = database.execute(f"SELECT topic_id, timestamp, {content} FROM messages NOT INDEXED ORDER BY id")
            while True:
                try:
                    row = next(rows, None)
                except sqlite3.Error:  # where the file ends
                    return
                if row is None:
                    return
                yield row

    def messages(
        self, connections: Collection[Any], start: int | None, stop: int | None
    ) -> Iterator[tuple[Any, int, bytes]]:
        wanted = {connection.id: connection for connection in connections}
        for topic, time, data in self._rows("data"):
            if topic in wanted and (start is None or time >= start) and (stop is None or time < stop):
                yield wanted[topic], time, data

    def close(self) -> None:
        """Each reading has a connection of its own."""
