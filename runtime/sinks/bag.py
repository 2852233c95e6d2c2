"""A bag of the views: images and ``camera_info`` with the stamps of their frames, and what was beside them."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.images import files as image_files
from diinn.runtime.sinks import ros_messages
from diinn.runtime.sinks.files import check_disk, make_folder
from diinn.runtime.sinks.ros_messages import FORMATS, JPEG, QUALITY, RAW, Outgoing, Turns
from diinn.runtime.sources import Source
from diinn.runtime.sources.bag import BagTopic
from diinn.runtime.sources.bag_file import Bag
from diinn.runtime.sources.ros_messages import COMPRESSED, IMAGE, INFO, NANO
from diinn.runtime.stream.result import Result
from diinn.runtime.stream.sink import Sink
from diinn.runtime.util import rosbags_library, uri_query

log = logging.getLogger(__name__)
SUFFIX = ".mcap"
STATIC = "/tf_static"
OPTIONS = {"format": FORMATS, "quality": None, "copy": ("all",), "topic": None}


def split(output: str) -> tuple[str, str] | None:
    """Path and options of ``PATH.mcap?key=value``; None for what is no bag."""
    found = re.fullmatch(r"(.*\.mcap)(?:\?(.*))?", output, re.IGNORECASE | re.DOTALL)
    return (found[1], found[2] or "") if found else None


class BagFile(Sink):
    """An MCAP file, written beside its name and renamed when whole, after an error or Ctrl-C, too.

    A result's messages bear the stamp of its frame, and the time at which a bag recorded that.
    """

    closing_seconds = 10.0  # without its end it has no index

    def __init__(self, path: Path, query: str, views: list[tuple[Source, list[str]]]) -> None:
        rosbags_library.check()
        self.where = str(path)
        chosen = dict(uri_query.pairs(query, f"--output {self.where}", OPTIONS))
        self._path, self._form = path, chosen.get("format", JPEG)
        self._quality = ros_messages.quality(chosen.get("quality", str(QUALITY)), f"--output {self.where}")
        base = ros_messages.check_topic(chosen["topic"], f"--output {self.where}") if "topic" in chosen else None
        self._topics = ros_messages.base_topics(views, base)
        self._copies = _copies([source for source, _ in views], self._topics.values()) if "copy" in chosen else []
        self._partial = image_files.beside(path)
        self._types = rosbags_library.types(ros1=False)
        self._writer: Any = None
        self._connections: dict[str, Any] = {}
        self._turns = Turns()
        self._count = 0

    def write(self, result: Result) -> None:
        if self._writer is None:
            self._open()
        check_disk(self._path.parent, f"the bag {self.where!r}", self._count)
        self._count += 1
        made = ros_messages.outgoing(result)
        for copy in self._copies:
            self._copy(copy.until(made.recorded))
        below, header = self._topics[result.key], self._header(made.stamp, made.frame_id)
        image = result.image
        if self._form == RAW:
            height, width = image.shape[:2]
            values = {"height": height, "width": width, "encoding": "bgr8", "is_bigendian": 0, "step": 3 * width}
            message = self._message(IMAGE, header=header, **values, data=image.reshape(-1))
            self._put(f"{below}/image", IMAGE, made.recorded, message)
        else:
            data = np.frombuffer(ros_messages.encoded(image, self._form, self._quality), np.uint8)
            message = self._message(COMPRESSED, header=header, format=f"bgr8; {self._form} compressed bgr8", data=data)
            self._put(f"{below}/image/compressed", COMPRESSED, made.recorded, message)
        roi = self._message(
            "sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False
        )
        info = self._message(INFO, header=header, **ros_messages.info_values(made.camera), roi=roi)
        self._put(f"{below}/camera_info", INFO, made.recorded, info)
        if self._turns.add(made):
            self._put_turn(made)

    def _put_turn(self, made: Outgoing) -> None:
        assert made.turn is not None
        x, y, z, w = ros_messages.pose(made.turn)
        zero = self._message("geometry_msgs/msg/Vector3", x=0.0, y=0.0, z=0.0)
        turn = self._message("geometry_msgs/msg/Quaternion", x=x, y=y, z=z, w=w)
        transform = self._message("geometry_msgs/msg/Transform", translation=zero, rotation=turn)
        stamped = self._message(
            "geometry_msgs/msg/TransformStamped",
            header=self._header(made.stamp, made.parent),
            child_frame_id=made.frame_id,
            transform=transform,
        )
        message = self._message("tf2_msgs/msg/TFMessage", transforms=[stamped])
        self._put(STATIC, "tf2_msgs/msg/TFMessage", made.recorded, message)

    def _header(self, stamp: int, frame_id: str) -> Any:
        seconds, rest = divmod(stamp, NANO)
        time = self._message("builtin_interfaces/msg/Time", sec=seconds, nanosec=rest)
        return self._message("std_msgs/msg/Header", stamp=time, frame_id=frame_id)

    def _message(self, kind: str, **values: Any) -> Any:
        return self._types.types[kind](**values)

    def _put(self, topic: str, kind: str, recorded: int, message: Any) -> None:
        if topic not in self._connections:
            profiles = [rosbags_library.kept()] if topic == STATIC else []  # as listeners of it request
            self._connections[topic] = self._writer.add_connection(
                topic, kind, typestore=self._types, offered_qos_profiles=profiles
            )
        self._writer.write(self._connections[topic], recorded, self._types.serialize_cdr(message, kind))

    def _copy(self, messages: Iterator[tuple[Any, int, bytes]]) -> None:
        for source, recorded, data in messages:
            if source.topic not in self._connections:
                stated = {"msgdef": source.msgdef.data, "rihs01": source.digest or self._hash(source)}
                self._connections[source.topic] = self._writer.add_connection(
                    source.topic,
                    source.msgtype,
                    **(stated if source.msgdef.data else {"typestore": self._types}),
                    offered_qos_profiles=source.ext.offered_qos_profiles,
                )
            self._writer.write(self._connections[source.topic], recorded, data)

    def _hash(self, source: Any) -> str:
        """The hash of a topic's type, where it is one of ROS's own; it is only a hint to readers."""
        known = source.msgtype in self._types.fielddefs
        return str(self._types.hash_rihs01(source.msgtype)) if known else "RIHS01_" + 64 * "0"

    def _open(self) -> None:
        make_folder(self._path.parent)
        check_disk(self._path.parent, f"the bag {self.where!r}", 0)
        self._partial.mkdir()
        self._writer = rosbags_library.writer(self._partial / self._path.stem)
        self._writer.open()

    def close(self, *, failed: bool = False) -> None:
        try:
            if self._writer is None:
                return
            try:
                for copy in self._copies:
                    if copy.source.complete and not failed:  # otherwise up to the last frame
                        self._copy(copy.until(None))
            finally:
                self._writer.close()
                folder = self._partial / self._path.stem
                (folder / f"{folder.name}{SUFFIX}").replace(self._path)
        except OSError as error:
            raise DiinnError(f"the bag {self.where!r} could not be finished: {error.strerror}") from None
        finally:
            self._writer = None
            for copy in self._copies:
                copy.bag.close()
            shutil.rmtree(self._partial, ignore_errors=True)


class _Copy:
    """The topics of a bag that are copied, beside those that views are made of."""

    def __init__(self, source: BagTopic, bag: Bag, topics: Collection[str]) -> None:
        self.source, self.bag = source, bag
        self._rest = bag.messages(topics, *source.span)
        self._next: tuple[str, int, bytes] | None = None

    def until(self, time: int | None) -> Iterator[tuple[Any, int, bytes]]:
        """(connection, time, data) of those recorded up to ``time``; of the rest where that is None."""
        while True:
            self._next = self._next or next(self._rest, None)
            if self._next is None or (time is not None and self._next[1] > time):
                return
            topic, recorded, data = self._next
            self._next = None
            yield self.bag.connection(topic), recorded, data


def _copies(sources: list[Source], written: Collection[str]) -> list[_Copy]:
    """What is copied of each bag that is read; InputError where there is none."""
    bags = {source.path: source for source in sources if isinstance(source, BagTopic)}
    if not bags:
        raise InputError("?copy=all copies the other topics of a bag, and no --input is one: leave it out")
    used = {source.topic for source in sources}
    results = {f"{topic}/{name}" for topic in written for name in ("image", "image/compressed", "camera_info")}
    known = rosbags_library.types(ros1=False).fielddefs
    found = []
    with contextlib.ExitStack() as opened:
        for path, source in bags.items():
            bag = opened.enter_context(Bag(path))
            if bag.ros1:
                raise InputError(
                    f"?copy=all takes no messages of ROS 1, and {str(path)!r} is one: convert it with rosbags-convert"
                )
            topics = []
            for topic in (name for name in bag.topics if name not in used):
                if topic in results:
                    raise InputError(
                        f"?copy=all would copy {topic} into a view's own topic: choose another by ?topic=/NAME"
                    )
                if bag.connection(topic).msgdef.data or bag.topics[topic].kind in known:
                    topics.append(topic)
                else:
                    log.warning("%s is not copied: the bag does not define its type %s", topic, bag.topics[topic].kind)
            found.append(_Copy(source, bag, topics))
        opened.pop_all()
    return found
