"""Recorded drives: bags of ROS 1 and ROS 2, whole or cut short, read through rosbags, which needs no ROS."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diinn.runtime.errors import DiinnError, InputError, SourceError
from diinn.runtime.sources import bag_mending
from diinn.runtime.util import rosbags_library
from diinn.runtime.util.context import Closing

log = logging.getLogger(__name__)
ENDINGS = (".mcap", ".db3", ".bag")
ZSTD = b"\x28\xb5\x2f\xfd"  # what its data begins with; that of a message does not
FURTHER = ".zstd"  # of a file that was compressed as a whole
ACTIVE = ".active"  # of a bag of ROS 1 that is being written
METADATA = "metadata.yaml"


def is_bag(path: Path) -> bool:
    """Whether a file is a bag, or a folder one of rosbag2's, by its name and those in it."""
    try:
        if path.is_dir():
            return (path / METADATA).is_file() or bool(_files(path))
    except (OSError, ValueError):  # its name may be none
        return False
    return path.name.removesuffix(FURTHER).removesuffix(ACTIVE).lower().endswith(ENDINGS)


def _files(folder: Path) -> list[Path]:
    endings = tuple(ending + more for ending in (".mcap", ".db3") for more in ("", FURTHER))
    return sorted(path for path in folder.iterdir() if path.name.endswith(endings) and path.is_file())


@dataclass(frozen=True)
class Topic:
    """A topic of a bag: name, type of its messages and how many there are."""

    name: str
    kind: str
    count: int


class Bag(Closing):
    """A bag, open for reading.

    topics: by name; begin, end: its first and last message, nanoseconds since the epoch
    cut_short: what of it could not be read and why, empty for one that is whole
    ros1: whether it is one of ROS 1
    """

    def __init__(self, path: Path) -> None:
        """Raises SourceError for what is no bag, or holds nothing that can be read."""
        self.path, self.cut_short = path, ""
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._parts: list[Any] = []
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        self.ros1 = path.suffix.lower() == ".bag"
        self._store = rosbags_library.types(ros1=self.ros1)
        self.topics: dict[str, Topic] = {}
        for part in self._parts:
            for connection in part.connections:
                known = self.topics.get(connection.topic)
                count = connection.msgcount + (known.count if known else 0)
                self.topics[connection.topic] = Topic(connection.topic, connection.msgtype, count)
        self.begin = min(part.start_time for part in self._parts)
        self.end = max(part.end_time for part in self._parts)

    def _open(self) -> None:
        if self.path.name.endswith(ACTIVE):
            raise SourceError(f"{str(self.path)!r} is being written, or was never finished: {_remedy(self.path)}")
        files, missing, mended = [self.path], list[str](), False
        if self.path.is_dir():
            files, missing = self._described(_files(self.path))
        if not files and not missing:
            raise SourceError(f"no bag in folder {str(self.path)!r}: looked for *.mcap and *.db3")
        troubles = [f"{name!r} of it is missing" for name in missing]
        for file in files:
            try:
                part, trouble = self._part(file)
            except SourceError as error:
                if len(files) == 1:
                    raise
                troubles.append(str(error))
                continue
            if part.message_count:
                self._parts.append(part)
            else:
                part.close()
            troubles += [trouble] if trouble else []
            mended = mended or bool(trouble)
        if not self._parts and troubles:
            raise SourceError(
                f"{'; '.join(troubles)}, which is no message: {_remedy(self.path)}" if mended else "; ".join(troubles)
            )
        if not self._parts:
            raise SourceError(f"{str(self.path)!r} holds no messages: record it again")
        self._parts.sort(key=lambda part: part.start_time)
        self.cut_short = "; ".join(troubles)

    def _described(self, there: list[Path]) -> tuple[list[Path], list[str]]:
        """The files that a folder's description names, and those that are missing; without it all ``there``."""
        from diinn.runtime.util import yaml_file

        description = self.path / METADATA
        if not description.is_file():
            log.warning("%r has no %s: it is being written, or was not finished", str(self.path), METADATA)
            return there, []
        try:
            names = yaml_file.read(description, "bag's description")["rosbag2_bagfile_information"][
                "relative_file_paths"
            ]
            stated = [self.path / Path(str(name)).name for name in names]
            return [path for path in stated if path.exists()], [path.name for path in stated if not path.exists()]
        except (InputError, KeyError, TypeError) as error:
            log.warning("%r: %s; the files beside it are taken", str(description), error)
            return there, []

    def _part(self, file: Path) -> tuple[Any, str]:
        """One file of it, open, and what of it cannot be read."""
        try:
            if not file.stat().st_size:
                raise SourceError(f"{str(file)!r} is empty: it is being written, or was not finished")
            if file.suffix == FURTHER:
                file = self._unpacked(file)
            return rosbags_library.opened(file), ""
        except OSError as error:
            raise SourceError(f"cannot read {str(file)!r}: {error.strerror}") from None
        except rosbags_library.failures() as error:
            why = rosbags_library.reason(error)
        mended = bag_mending.mended(file)
        if mended is None:
            raise SourceError(f"{str(file)!r} is no bag that can be read ({why}): {_remedy(file)}")
        return mended.part, mended.trouble

    def _unpacked(self, file: Path) -> Path:
        if self._scratch is None:
            self._scratch = tempfile.TemporaryDirectory(prefix="diinn-bag-")
        target = Path(self._scratch.name) / file.stem
        with rosbags_library.zstd().open(file, "rb") as packed, target.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        return target

    @property
    def seconds(self) -> float:
        """From its first message to its last."""
        return float(max(0, self.end - self.begin) / 1e9)

    def messages(
        self, topics: Collection[str], start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[str, int, bytes]]:
        """Topic, time of recording (nanoseconds) and content of each message, in order of recording.

        Args:
            topics: Those that are wanted.
            start: No message recorded before it.
            stop: No message recorded at it or later.

        Raises:
            DiinnError: It cannot be read any further.
        """
        for part in self._parts:
            wanted = [connection for connection in part.connections if connection.topic in topics]
            if not wanted or (stop is not None and part.start_time >= stop):
                continue
            try:
                for connection, time, data in part.messages(wanted, start, stop):
                    packed = not self.ros1 and data[:4] == ZSTD
                    yield connection.topic, time, rosbags_library.zstd().decompress(data) if packed else data
            except rosbags_library.failures() as error:
                why = rosbags_library.reason(error)
                raise DiinnError(f"{str(self.path)!r} is damaged and cannot be read any further: {why}") from None

    def decode(self, topic: str, data: bytes) -> Any:
        """A message as an object; SourceError where it is damaged."""
        kind = self.topics[topic].kind
        try:
            return self._store.deserialize_ros1(data, kind) if self.ros1 else self._store.deserialize_cdr(data, kind)
        except rosbags_library.failures() as error:
            raise SourceError(f"a message is damaged: {rosbags_library.reason(error)}") from None

    def connection(self, topic: str) -> Any:
        """Rosbags' description of a topic: its type, definition and hash."""
        return next(c for part in self._parts for c in part.connections if c.topic == topic)

    def close(self) -> None:
        """Close its files."""
        for part in self._parts:
            part.close()
        self._parts = []
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None


def _remedy(path: Path) -> str:
    if ".bag" in path.suffixes:
        return "rosbag reindex mends it"
    return "ros2 bag reindex may mend it, if it is a bag" if path.suffix != ".mcap" else "mcap recover may mend it"
