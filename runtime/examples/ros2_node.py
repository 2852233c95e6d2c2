"""A ROS 2 node that publishes a stream from shared memory as ``sensor_msgs/Image``.

::

    diinn-run --camera 0 --out-size 640x480 --output shm://front
    python -m diinn.runtime.examples.ros2_node front --frame-id camera_front
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from array import array

from diinn.runtime.errors import DiinnError
from diinn.runtime.sinks.shared_memory import SharedReader

try:
    import rclpy
    from rclpy.node import Node
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
except ModuleNotFoundError as missing:
    sys.exit(f"ROS 2's {missing.name} is not there: source /opt/ros/DISTRO/setup.bash, and use its Python")

POLL_SECONDS = 0.005


class Publisher(Node):  # type: ignore[misc]
    """Publishes each new frame of a segment on ``~/image``; opens the segment again when its writer does."""

    def __init__(self, name: str, frame_id: str) -> None:
        super().__init__("diinn")
        self._name, self._frame_id = name, frame_id
        self._reader: SharedReader | None = None
        self._number = 0
        self._publisher = self.create_publisher(Image, "~/image", qos_profile_sensor_data)
        self.create_timer(POLL_SECONDS, self._poll)

    def _poll(self) -> None:
        if self._reader is None or self._reader.closed:
            try:
                self._reader, self._number = SharedReader(self._name), 0
            except DiinnError as error:
                self.get_logger().info(str(error), throttle_duration_sec=5.0)
                return
        frame = self._reader.newest(self._number)
        if frame is None:
            return
        message = Image()
        message.header.stamp.sec = int(frame.captured)
        message.header.stamp.nanosec = int(frame.captured % 1 * 1e9)
        message.header.frame_id = self._frame_id
        message.height, message.width = frame.image.shape[:2]
        message.encoding, message.step = "bgr8", 3 * message.width
        message.data = array("B", frame.image.tobytes())  # the type that rclpy takes without checking each byte
        self._number = frame.number
        if self._reader.still_valid(frame):  # not overwritten while it was copied
            self._publisher.publish(message)


def main() -> None:
    """Entry point."""
    top = argparse.ArgumentParser(description="Publish frames of diinn-run --output shm://NAME.")
    top.add_argument("name", help="the segment's NAME")
    top.add_argument("--frame-id", default="camera")
    args = top.parse_args(rclpy.utilities.remove_ros_args(sys.argv)[1:])
    rclpy.init()
    with contextlib.suppress(KeyboardInterrupt):
        rclpy.spin(Publisher(args.name, args.frame_id))


if __name__ == "__main__":
    main()
