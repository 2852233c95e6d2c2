"""ROS 2 by its own Python library, rclpy: imported when a topic is opened. A system's own, as TensorRT is."""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Sequence
from typing import Any

from diinn.runtime.errors import InputError, SourceError
from diinn.runtime.util.context import Closing

REMEDY = (
    "on a robot 'source /opt/ros/DISTRO/setup.bash' and use the system's Python (docs/ros2.md), on a laptop "
    "'pip install ros-jazzy-rclpy ros-jazzy-rmw-fastrtps-cpp ros-jazzy-sensor-msgs'"
)
DISCOVERY_SECONDS = 3.5  # in which nodes of a robot find each other: Fast DDS announces each every 3 s
SLICE_SECONDS = 0.05  # of waiting in rclpy, which no signal interrupts


def check() -> None:
    """InputError where ROS 2 is not there."""
    for name in ("rclpy", "sensor_msgs"):
        if not there(name):
            raise InputError(f"ROS 2's {name} is not there: {REMEDY}")


def there(name: str) -> bool:
    """Whether a Python package is installed; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def message_type(kind: str) -> Any:
    """The class of ``sensor_msgs/msg/Image``; InputError where its package is not there."""
    package, _, name = kind.partition("/msg/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except ImportError as error:
        debian = package.replace("_", "-")
        raise InputError(
            f"ROS 2's {package} cannot be imported ({' '.join(str(error).split())[:100]}): "
            f"sudo apt install ros-DISTRO-{debian}, or pip install ros-jazzy-{debian}"
        ) from None


class Bus(Closing):
    """A node of ours on the robot's bus. It does something while it is spun, by one thread at a time."""

    def __init__(self, name: str, *, sim_time: bool = False, arguments: Sequence[str] | None = None) -> None:
        """Raises InputError where ROS 2 is not there, SourceError where it does not start.

        sim_time: whether its clock is that of a simulation, from ``/clock``
        arguments: of a node that others configure, as ``--ros-args`` has them: its name, namespace and parameters
        """
        check()
        try:
            rclpy = importlib.import_module("rclpy")
            executors, nodes = importlib.import_module("rclpy.executors"), importlib.import_module("rclpy.node")
            parameter = importlib.import_module("rclpy.parameter").Parameter
        except ImportError as error:  # a library of its own is missing, or of another Python
            raise InputError(f"ROS 2 cannot be imported ({' '.join(str(error).split())[:150]}): {REMEDY}") from None
        self._context = rclpy.Context()
        quiet: dict[str, Any] = {"use_global_arguments": False, "start_parameter_services": False}
        quiet |= {"enable_rosout": False, "parameter_overrides": [parameter("use_sim_time", value=sim_time)]}
        try:
            rclpy.init(args=[*(arguments or [])], context=self._context)  # without handlers of signals, which are ours
            if arguments is None:
                self.node = nodes.Node(f"{name}_{os.getpid()}", context=self._context, **quiet)
            else:
                self.node = nodes.Node(name, context=self._context)
        except Exception as error:  # of the middleware
            raise SourceError(f"ROS 2 does not start: {' '.join(str(error).split())[:200]}") from None
        self._executor = executors.SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)

    def spin(self, seconds: float = SLICE_SECONDS) -> None:
        """Do one thing that is due, or wait for one as long."""
        self._executor.spin_once(timeout_sec=seconds)

    def spin_for(self, seconds: float) -> None:
        """Do what is due for as long."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.spin(min(left, SLICE_SECONDS))

    def topics(self) -> dict[str, list[str]]:
        """The topics that are known so far, with their types."""
        return dict(self.node.get_topic_names_and_types())

    def publishers(self, topic: str) -> list[Any]:
        """What is known of those who publish a topic: node, and quality of service."""
        return list(self.node.get_publishers_info_by_topic(topic))

    def subscribers(self, topic: str) -> list[Any]:
        """What is known of those who subscribe to a topic: node, and quality of service."""
        return list(self.node.get_subscriptions_info_by_topic(topic))

    def now(self) -> int:
        """The node's clock, nanoseconds: the machine's, or a simulation's."""
        return int(self.node.get_clock().now().nanoseconds)

    def close(self) -> None:
        """End the node."""
        self._executor.shutdown(timeout_sec=0.2)
        self.node.destroy_node()
        self._context.try_shutdown()
