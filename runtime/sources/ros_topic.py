"""A topic of ROS 2 as a camera: its messages as the camera's worker process reads them."""

from __future__ import annotations

import time
from typing import Any

from diinn.runtime.errors import InputError, SourceError
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.sources import ros_messages
from diinn.runtime.sources.capture import CaptureRequest, OpenCapture
from diinn.runtime.sources.pixel_formats import FLIPS
from diinn.runtime.sources.ros_messages import COMPRESSED, IMAGES, INFO, NANO, EncodingError
from diinn.runtime.util import uri_query
from diinn.runtime.util.ros import SLICE_SECONDS, Bus, message_type

SCHEME = "ros2"
OPTIONS = {"reliability": ("best_effort", "reliable"), "use_sim_time": ("true", "false")}
INFO_SECONDS = 1.5  # that the first image waits for the first camera_info, where one is published
LOOK_SECONDS = 1.0  # from one look at who publishes to the next
OLDEST, NEWEST = 10.0, -0.05  # seconds by which a stamp may be older than the clock; beyond, clocks do not agree
MOST_LISTED = 8


def split(address: str) -> tuple[str, dict[str, str]]:
    """The topic of ``ros2:///front/image_raw?reliability=reliable`` and its options; InputError for what is none."""
    rest = address.partition("://")[2]
    path, _, query = rest.partition("?")
    topic = "/" + path.strip("/")
    if not ros_messages.TOPIC.fullmatch(topic):
        raise InputError(f"camera {address}: {path!r} is no topic: write {SCHEME}:///front/image_raw")
    return topic, dict(uri_query.pairs(query, f"camera {address}", OPTIONS))


class RosCapture(OpenCapture):
    """A topic of images, with the ``camera_info`` beside it."""

    def __init__(self, device: CaptureRequest) -> None:
        until = time.monotonic() + 0.85 * device.opening  # then the parent ends us
        self._device = device
        self.rate = device.rate or 30.0
        self._topic, options = split(str(device.address))
        self._reliability = options.get("reliability")
        self._bus = Bus("diinn_camera", sim_time=options.get("use_sim_time") == "true")
        self._message: Any = None
        self._subscription: Any = None
        self._adapted: tuple[bool, bool] | None = None
        self._looked = self._skipped_until = 0.0
        self._trouble = ""
        self._kind = self._wait_for_topic(until)
        self._adapt()
        self._subscribe_to_info()
        self._patience = 0.9 * max(device.stall, 2 / device.rate if device.rate else 0.0)  # then the parent ends us

    def _wait_for_topic(self, until: float) -> str:
        """The type of the topic, once it is published."""
        topics: dict[str, list[str]] = {}
        while time.monotonic() < until:
            self._bus.spin_for(SLICE_SECONDS)
            topics = self._bus.topics()
            kinds = topics.get(self._topic, [])
            if found := [kind for kind in kinds if kind in IMAGES]:
                return found[0]
            if kinds:
                raise SourceError(f"cannot be opened, it holds {', '.join(kinds)} and no images")
        images = sorted(name for name, kinds in topics.items() if set(kinds) & {*IMAGES})
        others = f"there are {', '.join(images[:MOST_LISTED])}" if images else "nobody publishes images here"
        raise SourceError(f"cannot be opened, nobody publishes it; {others}")

    def _adapt(self) -> None:
        """Subscribe as the publishers offer: reliably, and to what they kept, where all of them do."""
        self._looked = time.monotonic()
        qos = _qos()
        offers = [endpoint.qos_profile for endpoint in self._bus.publishers(self._topic)]
        if not offers:
            return  # gone for now; what was subscribed stays
        reliable = all(offer.reliability == qos.ReliabilityPolicy.RELIABLE for offer in offers)
        kept = all(offer.durability == qos.DurabilityPolicy.TRANSIENT_LOCAL for offer in offers)
        if self._reliability == "reliable" and not reliable:
            raise SourceError(
                "cannot be opened, a publisher offers best effort and ?reliability=reliable requests more: leave it out"
            )
        reliable = reliable and self._reliability != "best_effort"
        if self._adapted == (reliable, kept):
            return
        if self._subscription is not None:
            self._bus.node.destroy_subscription(self._subscription)
        self._adapted = reliable, kept
        profile = qos.QoSProfile(
            depth=1,  # the newest frame is wanted
            reliability=qos.ReliabilityPolicy.RELIABLE if reliable else qos.ReliabilityPolicy.BEST_EFFORT,
            durability=qos.DurabilityPolicy.TRANSIENT_LOCAL if kept else qos.DurabilityPolicy.VOLATILE,
        )
        self._subscription = self._bus.node.create_subscription(
            message_type(self._kind), self._topic, self._take, profile
        )

    def _subscribe_to_info(self) -> None:
        topic = ros_messages.info_topic(self._topic)
        qos = _qos()
        profile = qos.QoSProfile(depth=1, reliability=qos.ReliabilityPolicy.BEST_EFFORT)
        self._bus.node.create_subscription(message_type(INFO), topic, self._take_info, profile)
        if INFO in self._bus.topics().get(topic, []):
            until = time.monotonic() + min(INFO_SECONDS, 0.1 * self._device.opening)
            while self.info is None and time.monotonic() < until:
                self._bus.spin()

    def _take(self, message: Any) -> None:
        self._message = message

    def _take_info(self, message: Any) -> None:
        fields = ros_messages.info_fields(message)
        if fields != self.info:
            self.info = fields

    def read(self) -> tuple[UInt8, float, float]:
        began = time.monotonic()
        while True:
            self._bus.spin()
            now = time.monotonic()
            if now - self._looked > LOOK_SECONDS:
                self._adapt()
            if self._message is None:
                if now - began > self._patience:
                    raise SourceError(self._silence())
                continue
            message, self._message = self._message, None
            if self._device.rate is not None and now < self._skipped_until:  # it sends more than was requested
                continue
            try:
                image = ros_messages.image(message, self._kind)
            except EncodingError:
                raise
            except SourceError as error:  # of this image
                self.undecodable += 1
                self._trouble = str(error)
                continue
            if self._device.rate is not None:
                self._skipped_until = max(self._skipped_until + 1 / self._device.rate, now - 0.5 / self._device.rate)
            self._trouble = ""
            stamp = self._note(message)
            return FLIPS[self._device.flip](image) if self._device.flip else image, stamp / NANO, now

    def _note(self, message: Any) -> int:
        """Keep what a message says of its frame; its stamp, or the time now where that is zero."""
        stamp, now = ros_messages.stamp(message), self._bus.now()
        lag = (now - stamp) / NANO if now else 0.0  # a simulation's clock that has not been heard yet
        self.header = {
            "stamp": stamp or now,
            "frame_id": str(message.header.frame_id),
            "lag": lag if stamp else None,
            "agrees": bool(stamp) and NEWEST <= lag <= OLDEST,
        }
        return stamp or now

    def _silence(self) -> str:
        if self._trouble:
            return f"sends nothing that can be taken: {self._trouble}"
        if not self._bus.publishers(self._topic):
            return "is not published any more"
        return f"is published, but nothing came for {self._patience:.1f} s"

    def close(self) -> None:
        self._bus.close()


def _qos() -> Any:
    import importlib

    return importlib.import_module("rclpy.qos")


def topics_here(seconds: float) -> list[tuple[str, str]]:
    """The image topics on the robot's bus (name, type), after listening for ``seconds``."""
    with Bus("diinn_list") as bus:
        bus.spin_for(seconds)
        found = [(name, kinds[0]) for name, kinds in bus.topics().items() if set(kinds) & {*IMAGES}]
    return sorted((name, "compressed" if kind == COMPRESSED else "raw") for name, kind in found)
