"""Real publishers and subscribers of ROS 2, in processes of their own, on the loopback.

``python tests/rosbus.py publish …`` is such a process; ``Publisher`` and ``Subscriber`` start one and talk to it.
"""

import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

SECONDS = 90.0  # that a line may take on a busy machine
TESTS = Path(__file__).resolve().parent
INSTALL = (
    "no ROS 2 here: pip install ros-jazzy-rclpy ros-jazzy-rmw-fastrtps-cpp ros-jazzy-sensor-msgs "
    "ros-jazzy-geometry-msgs ros-jazzy-diagnostic-msgs, or make test-ros"
)


@pytest.fixture
def bus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bus of the test's own, on the loopback."""
    if importlib.util.find_spec("rclpy") is None:
        pytest.skip(INSTALL)
    for name, value in environment(1 + os.getpid() % 100).items():
        monkeypatch.setenv(name, value)


def environment(domain: int) -> dict[str, str]:
    """Of processes that hear nobody but each other."""
    return {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "ROS_DOMAIN_ID": str(domain)}


class Process:
    """A process of this file; what it prints are lines of JSON."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "rosbus.py"), *map(str, words)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for text in self.process.stdout:
            self._lines.put(text)
        self._lines.put("")

    def line(self) -> Any:
        """The next thing it prints; AssertionError where nothing comes."""
        try:
            text = self._lines.get(timeout=SECONDS)
        except queue.Empty:
            raise AssertionError(f"nothing came for {SECONDS} s") from None
        assert text, "it has ended"
        return json.loads(text)

    def end(self, number: int = signal.SIGINT) -> list[Any]:
        """End it; the rest of what it printed."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError("it did not end") from None
        return [json.loads(text) for text in iter(lambda: self._lines.get(timeout=SECONDS), "")]

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)  # killed, it would leave what Fast DDS has in /dev/shm
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def publisher(topic: str, **options: object) -> Process:
    """Publishes numbered pictures; options as ``publish`` takes them."""
    return Process("publish", topic, json.dumps(options))


def subscriber(topic: str, kind: str = "Image", **options: object) -> Process:
    """Prints what it receives; options as ``subscribe`` takes them."""
    return Process("subscribe", topic, kind, json.dumps(options))


def node(name: str) -> Any:
    import rclpy
    from rclpy.node import Node

    rclpy.init()
    return Node(f"{name}_{os.getpid()}")


def profile(reliability: str = "best_effort", durability: str = "volatile", depth: int = 5) -> Any:
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy[reliability.upper()],
        durability=DurabilityPolicy[durability.upper()],
    )


def publish(topic: str, options: dict[str, Any]) -> None:
    """encoding, size, rate, count, stamps ("now", "zero" or nanoseconds to add), frame_id, info, reliability, …"""
    import cv2
    import numpy as np
    import rclpy
    from bagged import numbered  # pictures
    from builtin_interfaces.msg import Time
    from rosgraph_msgs.msg import Clock
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image

    size = tuple(options.get("size", (160, 120)))
    encoding, rate = options.get("encoding", "bgr8"), options.get("rate", 20)
    here = node("publisher")
    qos = profile(options.get("reliability", "best_effort"), options.get("durability", "volatile"))
    compressed = encoding in ("jpeg", "png")
    pictures = here.create_publisher(CompressedImage if compressed else Image, topic, qos)
    infos = (
        here.create_publisher(CameraInfo, topic.rpartition("/")[0] + "/camera_info", qos)
        if options.get("info")
        else None
    )
    raws = [numbered(number % 256, size) for number in range(min(options.get("count", 64), 64))]
    clock = here.create_publisher(Clock, "/clock", profile("reliable")) if options.get("simulated") else None
    number = 0
    print(json.dumps({"ready": True}))
    with contextlib.suppress(KeyboardInterrupt):
        while number < options.get("count", 10**9) and rclpy.ok():
            began = time.monotonic()
            picture = raws[number % len(raws)]
            message = CompressedImage() if compressed else Image()
            stamp = 0 if options.get("stamps") == "zero" else time.time_ns() + options.get("ahead", 0)
            if clock is not None:
                stamp = 1_000 * 10**9 + number * 10**8  # a simulation's
                clock.publish(Clock(clock=Time(sec=stamp // 10**9, nanosec=stamp % 10**9)))
            message.header.stamp.sec, message.header.stamp.nanosec = stamp // 10**9, stamp % 10**9
            message.header.frame_id = options.get("frame_id", "front_optical")
            if compressed:
                message.format = f"bgr8; {encoding} compressed bgr8"
                data = cv2.imencode(f".{encoding}", picture)[1]
            else:
                data = encode(picture, encoding)
                data = data.reshape(picture.shape[0], -1).view(np.uint8)
                message.encoding, message.height, message.width = encoding, picture.shape[0], picture.shape[1]
                message.step = data.nbytes // picture.shape[0] + options.get("padding", 0)
                if options.get("padding"):
                    rows = np.zeros((picture.shape[0], message.step), np.uint8)
                    rows[:, : data.shape[1]] = data
                    data = rows
            import array

            message.data = array.array("B", np.ascontiguousarray(data).tobytes())
            if infos is not None:
                infos.publish(info_message(message.header, options["info"], size))
            pictures.publish(message)
            if options.get("report"):
                print(json.dumps({"number": number, "stamp": stamp}))
            number += 1
            rclpy.spin_once(here, timeout_sec=0)
            time.sleep(max(0.0, began + 1 / rate - time.monotonic()))
        while options.get("stay") and rclpy.ok():
            rclpy.spin_once(here, timeout_sec=0.1)


def encode(picture: Any, encoding: str) -> Any:
    import cv2
    import numpy as np

    if encoding == "rgb8":
        return np.ascontiguousarray(picture[..., ::-1])
    if encoding == "mono8":
        return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
    if encoding == "mono16":
        return cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.uint16) << 8
    if encoding == "bayer_rggb8":
        mosaic = picture[..., 1].copy()
        mosaic[::2, ::2], mosaic[1::2, 1::2] = picture[::2, ::2, 2], picture[1::2, 1::2, 0]
        return mosaic
    return picture


def info_message(header: Any, values: dict[str, Any], size: tuple[int, ...]) -> Any:
    from sensor_msgs.msg import CameraInfo

    info = CameraInfo()
    info.header, info.width, info.height = header, size[0], size[1]
    info.distortion_model = "plumb_bob"
    for key, value in values.items():
        setattr(info, key, value)
    return info


def subscribe(topic: str, kind: str, options: dict[str, Any]) -> None:
    """Prints a line for each message: stamp, frame_id, size, the number burnt in, and what an info holds."""
    import importlib

    import cv2
    import numpy as np
    import rclpy
    from diinn.benchmarks.mjpeg_server import burnt

    package = (
        "tf2_msgs.msg"
        if kind == "TFMessage"
        else "diagnostic_msgs.msg"
        if kind.startswith("Diag")
        else "sensor_msgs.msg"
    )
    message_type = getattr(importlib.import_module(package), kind)
    here = node("subscriber")
    count = 0

    def take(message: Any) -> None:
        nonlocal count
        count += 1
        found: dict[str, Any] = {"at": time.time_ns()}
        if hasattr(message, "header"):
            stamp = message.header.stamp
            found |= {"stamp": stamp.sec * 10**9 + stamp.nanosec, "frame_id": message.header.frame_id}
        if kind == "Image":
            pixels = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
            image = pixels[:, : 3 * message.width].reshape(message.height, message.width, 3)
            found |= {"size": [message.width, message.height], "encoding": message.encoding, "number": burnt(image)}
        elif kind == "CompressedImage":
            image = cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)
            found |= {"size": [image.shape[1], image.shape[0]], "format": message.format, "number": burnt(image)}
        elif kind == "CameraInfo":
            found |= {"size": [message.width, message.height], "model": message.distortion_model}
            found |= {key: list(map(float, getattr(message, key))) for key in ("d", "k", "r", "p")}
        elif kind.startswith("Diag"):
            found["status"] = [
                {
                    "name": s.name,
                    "level": s.level[0],
                    "message": s.message,
                    "values": {v.key: v.value for v in s.values},
                }
                for s in message.status
            ]
        elif kind == "TFMessage":
            found["transforms"] = [
                {
                    "frame_id": t.header.frame_id,
                    "child": t.child_frame_id,
                    "rotation": [getattr(t.transform.rotation, axis) for axis in "xyzw"],
                }
                for t in message.transforms
            ]
        print(json.dumps(found))

    qos = profile(options.get("reliability", "best_effort"), options.get("durability", "volatile"))
    here.create_subscription(message_type, topic, take, qos)
    print(json.dumps({"ready": True}))
    with contextlib.suppress(KeyboardInterrupt):
        while rclpy.ok() and count < options.get("count", 10**9):
            rclpy.spin_once(here, timeout_sec=0.1)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))
    if sys.argv[1] == "publish":
        publish(sys.argv[2], json.loads(sys.argv[3]))
    else:
        subscribe(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
