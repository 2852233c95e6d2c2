"""Views as topics of ROS 2: images with their ``camera_info`` beside them, made only while somebody subscribes."""

from __future__ import annotations

import logging
import threading
import time
from array import array
from collections.abc import Sequence
from typing import Any

from diinn.runtime.errors import InputError
from diinn.runtime.geometry.calibration_file import Float64
from diinn.runtime.sinks import ros_messages
from diinn.runtime.sinks.ros_messages import FORMATS, QUALITY, RAW, Outgoing, Turns
from diinn.runtime.sources import Source
from diinn.runtime.sources.ros_messages import COMPRESSED, IMAGE, INFO, NANO, info_topic
from diinn.runtime.stream.result import Result
from diinn.runtime.stream.sink import LiveStream, Sink
from diinn.runtime.util import ros, uri_query
from diinn.runtime.util.once import Once
from diinn.runtime.util.ros import Bus, message_type

log = logging.getLogger(__name__)
SCHEME = "ros2"
OPTIONS: dict[str, Sequence[str] | None] = {
    "format": FORMATS,
    "quality": None,
    "reliability": ("best_effort", "reliable"),
}
WAIT_SECONDS = 0.05
LOOK_SECONDS = 1.0  # from one look at who subscribes to the next
DEPTH = 5  # messages that wait for a slow subscriber, as for sensors
TF = "tf2_msgs/msg/TFMessage"


class RosTopics(Sink):
    """All views below one topic: ``image`` or ``image/compressed``, and ``camera_info``.

    With several cameras or views their names stand before these.
    """

    def __init__(self, rest: str, views: Sequence[tuple[Source, Sequence[str]]]) -> None:
        """Raises InputError where ROS 2 is not there, or a topic would be its own input.

        rest: ``/front/sr?format=jpeg``, what is behind the scheme
        """
        path, _, query = rest.partition("?")
        self.where = f"{SCHEME}://{path}"
        what = f"--output {self.where}"
        base = ros_messages.check_topic(path, what)
        chosen = dict(uri_query.pairs(query, what, OPTIONS))
        self._form, self._base = chosen.get("format", RAW), base
        self._quality = ros_messages.quality(chosen.get("quality", str(QUALITY)), what)
        self.topics = self._planned(views)
        ros.check()
        self._bus = Bus("diinn_views")
        self._profile = _profile(chosen.get("reliability", "best_effort"))
        self._named: dict[str, tuple[Any, Any]] = {}  # publishers of image and camera_info, by what they are below
        self._publishers: dict[tuple[str, str], tuple[Any, Any]] = {}
        self._lock = threading.RLock()  # of the publishers, which ``offer`` destroys
        self._looked: dict[str, float] = {}  # when a topic's subscribers were looked at
        self._logged = Once()  # topics whose subscribers request more than is offered
        self._turns = Turns()
        self._static: Any = None
        try:
            self.offer(views)
        except BaseException:
            self._bus.close()
            raise

    def offer(self, views: Sequence[tuple[Source, Sequence[str]]]) -> None:
        """Publish these views of each source from now on, and no others.

        Raises InputError, and changes nothing, where a topic would be its own input.
        """
        topics = self._planned(views)
        with self._lock:
            self.topics = topics
            self._offer(views)

    def _offer(self, views: Sequence[tuple[Source, Sequence[str]]]) -> None:
        belows = ros_messages.base_topics(views, self._base)
        kind = message_type(IMAGE if self._form == RAW else COMPRESSED)
        create = self._bus.node.create_publisher
        for below in {*belows.values()} - {*self._named}:
            image = create(kind, f"{below}/{self._image}", self._profile)
            self._named[below] = image, create(message_type(INFO), f"{below}/camera_info", self._profile)
        self._publishers = {key: self._named[below] for key, below in belows.items()}
        for below in {*self._named} - {*belows.values()}:
            for publisher in self._named.pop(below):
                self._bus.node.destroy_publisher(publisher)

    def _planned(self, views: Sequence[tuple[Source, Sequence[str]]]) -> set[str]:
        """The topics of views; InputError where one is an input."""
        belows = ros_messages.base_topics(views, self._base).values()
        topics = {f"{below}/{name}" for below in belows for name in (self._image, "camera_info")}
        for source, _ in views:
            if not (source.topic and source.live):  # a bag's is not on the bus
                continue
            for own in (source.topic, info_topic(source.topic)):
                if own in topics:
                    raise InputError(
                        f"--output {self.where} would publish {own}, its own input: a loop; choose another"
                    )
        return topics

    @property
    def _image(self) -> str:
        return "image" if self._form == RAW else "image/compressed"

    def attach(self, stream: LiveStream) -> None:
        """Frames of bags and files pass by at once where nobody subscribes: give those who do the time to be found."""
        until = time.monotonic() + ros.DISCOVERY_SECONDS
        while not all(lane.source.live for lane in stream.lanes) and time.monotonic() < until:
            if any(self.wanted(*key) for key in self._publishers):
                return
            time.sleep(WAIT_SECONDS)

    def wanted(self, camera: str, view: str) -> bool:
        with self._lock:
            found = self._publishers.get((camera, view), ())
            for publisher in found:
                if publisher.get_subscription_count():
                    return True
                self._look_for_mismatches(publisher.topic_name)
        return False

    def _look_for_mismatches(self, topic: str) -> None:
        """Log once which subscribers get nothing because they request what is not offered."""
        now = time.monotonic()
        if self._profile.reliability.name == "RELIABLE" or now < self._looked.get(topic, 0.0) + LOOK_SECONDS:
            return
        self._looked[topic] = now
        subscribers = self._bus.subscribers(topic)
        reliable = [s.node_name for s in subscribers if s.qos_profile.reliability.name == "RELIABLE"]
        if reliable and self._logged.first(topic):
            log.warning(
                "%s: %s requests reliable delivery and best effort is offered, so that nothing reaches it: add "
                "?reliability=reliable to the output",
                *(topic, reliable[0]),
            )

    def write(self, result: Result) -> None:
        made = ros_messages.outgoing(result)
        header = _header(made.stamp, made.frame_id)
        with self._lock:
            images, _ = self._publishers.get(result.key, (None, None))
            seen = images is not None and images.get_subscription_count()
        message = self._message(header, result) if seen else None  # slow: views may be others by the time it is made
        with self._lock:
            images, infos = self._publishers.get(result.key, (None, None))
            if images is None:
                return  # a view that is offered no more
            if self._turns.add(made):
                self._publish_turns(made)
            if infos.get_subscription_count():
                infos.publish(_info(header, made))
            if message is not None:
                images.publish(message)

    def _message(self, header: Any, result: Result) -> Any:
        data = array("B")  # the type that rclpy takes without a look at each byte
        if self._form == RAW:
            message = message_type(IMAGE)(header=header, encoding="bgr8", is_bigendian=0)
            message.height, message.width = result.image.shape[:2]
            message.step = 3 * message.width
            data.frombytes(result.image.reshape(-1).data)
        else:
            message = message_type(COMPRESSED)(header=header, format=f"bgr8; {self._form} compressed bgr8")
            data.frombytes(ros_messages.encoded(result.image, self._form, self._quality))
        message.data = data
        return message

    def _publish_turns(self, made: Outgoing) -> None:
        """Publish where turned views look: all that are known in one message, which late subscribers get."""
        if self._static is None and self._logged.first(TF):
            try:
                kept = _profile("reliable", kept=True)
                self._static = self._bus.node.create_publisher(message_type(TF), "/tf_static", kept)
            except InputError as error:
                log.warning("the transform of frame %s is not published: %s", made.frame_id, error)
        if self._static is not None:
            transforms = [
                transform(made.stamp, parent, child, turn) for child, (parent, turn) in self._turns.known.items()
            ]
            self._static.publish(message_type(TF)(transforms=transforms))

    def statistics(self) -> dict[str, Any]:
        with self._lock:
            found = {"/".join(key): p[0].get_subscription_count() for key, p in self._publishers.items()}
        return {"subscribers": found}

    def close(self, *, failed: bool = False) -> None:
        with self._lock:
            self._publishers = {}
            if self._named:
                self._named = {}
                self._bus.close()


def _profile(reliability: str, *, kept: bool = False) -> Any:
    from rclpy import qos

    return qos.QoSProfile(
        depth=1 if kept else DEPTH,
        reliability=qos.ReliabilityPolicy[reliability.upper()],
        durability=qos.DurabilityPolicy.TRANSIENT_LOCAL if kept else qos.DurabilityPolicy.VOLATILE,
    )


def _header(stamp: int, frame_id: str) -> Any:
    header = message_type("std_msgs/msg/Header")(frame_id=frame_id)
    header.stamp.sec, header.stamp.nanosec = divmod(stamp, NANO)
    return header


def _info(header: Any, made: Outgoing) -> Any:
    values = ros_messages.info_values(made.camera)
    plain = {key: value if isinstance(value, int | str) else value.tolist() for key, value in values.items()}
    return message_type(INFO)(header=header, **plain)


def transform(stamp: int, parent: str, child: str, turn: Float64) -> Any:
    """A ``TransformStamped`` from a camera's frame to that of a view, which is turned by ``turn``."""
    message = message_type("geometry_msgs/msg/TransformStamped")(header=_header(stamp, parent), child_frame_id=child)
    rotation = message.transform.rotation
    rotation.x, rotation.y, rotation.z, rotation.w = ros_messages.pose(turn)
    return message
