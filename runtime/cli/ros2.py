"""``diinn-ros2``: image topics in, super-resolved topics out, as a node of ROS 2."""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.util.command_line import Parser, guarded

log = logging.getLogger(__name__)
NAME = "diinn-ros2"
DIAGNOSTICS = "diagnostic_msgs/msg/DiagnosticArray"
DIAGNOSTICS_SECONDS = 1.0
CALLS = 4  # of services at most between two looks at the stream
PARAMETERS: dict[str, tuple[Any, str]] = {
    "image": (["image_raw"], "topics of images, in the node's namespace or from /"),
    "output": ("sr", "what the topics of the results are below"),
    "views": ([""], "NAME=VIEW each, as --view of diinn-run; default: all of it, twice as large; may be changed"),
    "model": ("small", "shipped model or a .diinn folder"),
    "backend": ("auto", "cuda, tensorrt, onnxruntime or auto"),
    "denoise": ("", "auto, a noise level or NOISE,COMPRESSION; may be changed"),
    "deadline_ms": (0.0, "from a frame's arrival to its views; 0 for none"),
    "max_fps": (0.0, "frames a second processed of each topic at most; 0 for all"),
    "calibration": ("", "a file, in place of the camera_info beside the images"),
    "format": ("raw", "of the results: raw, jpeg or png"),
    "reliability": ("best_effort", "of the results: best_effort or reliable"),
}
EPILOG = """\
parameters, given as --ros-args -p NAME:=VALUE:
{}

examples:
  diinn-ros2 --ros-args -p image:=/front/image_raw -p output:=/front/sr
  diinn-ros2 --ros-args -r __ns:=/front -p views:="['plate=roi:40,30,80,60:320x240']"
  ros2 param set /diinn views "['flat=rectify:640x480']"
"""


@dataclass(frozen=True)
class Options:
    """What the parameters say."""

    topics: Sequence[str]
    output: str
    values: dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """The command line; all but help is ROS's."""
    lines = "\n".join(f"  {name:<12} {what}" for name, (_, what) in PARAMETERS.items())
    top = Parser(
        prog=NAME,
        description=__doc__,
        epilog=EPILOG.format(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.hint = "parameters are given as --ros-args -p NAME:=VALUE"
    top.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 0 at the end and after a signal, 1 for a failure while running, 2 for bad input."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--ros-args") if "--ros-args" in words else len(words)
    end = words.index("--", at) if "--" in words[at:] else len(words)
    args = parser().parse_args(words[:at] + words[end + 1 :])
    logging.basicConfig(level=args.log_level.upper(), format=f"{NAME}: %(message)s", force=True)
    return guarded(NAME, "pip install 'diinn[cpu]'", lambda: run(words[at:end]))


def run(ros_arguments: Sequence[str]) -> int:
    """Run the node until a signal."""
    from diinn.runtime.cli.signals import stopping
    from diinn.runtime.super_resolver import SuperResolver
    from diinn.runtime.util.ros import Bus

    with stopping() as stop, Bus("diinn", arguments=ros_arguments) as bus:
        options = _options(bus)
        with SuperResolver.open(options.values["model"], backend=options.values["backend"]) as resolver:
            served = NodeStream(bus, options, resolver)
            print(f"{NAME}: {', '.join(options.topics)} -> {options.output}", flush=True)
            served.stream.run(stop, served.tick)
    return 0


def _options(bus: Any) -> Options:
    """The node's parameters, declared; InputError for one of another type."""
    node = bus.node
    values = {}
    from rclpy.exceptions import InvalidParameterTypeException
    from rclpy.parameter import Parameter

    for name, (default, _) in PARAMETERS.items():
        dynamic = _descriptor(name) if name in ("image", "views", "denoise", "deadline_ms", "max_fps") else None
        try:
            value = node.declare_parameter(name, default, dynamic).value
        except InvalidParameterTypeException as error:
            raise InputError(f"parameter {name}: {' '.join(str(error).split())}") from None
        values[name] = value
    for name in ("image", "views"):  # one alone needs no brackets
        listed = values[name] or []
        if isinstance(listed, str) or not isinstance(listed, Iterable):
            listed = [listed]
        if not all(isinstance(text, str) for text in listed):
            raise InputError(f"parameter {name}: {values[name]!r} is no text, and no list of texts")
        values[name] = [text for text in listed if text]
    for name in ("deadline_ms", "max_fps"):
        if isinstance(values[name], bool) or not isinstance(values[name], int | float):
            raise InputError(f"parameter {name}: {values[name]!r} is not a number")
    if not values["image"]:
        raise InputError("parameter image: give a topic of images, -p image:=/front/image_raw")
    sim = node.get_parameter_or("use_sim_time", Parameter("use_sim_time", value=False)).value
    query = "?use_sim_time=true" if sim else ""
    topics = [f"ros2://{_resolved(node, 'image', topic)}{query}" for topic in values["image"]]
    return Options(topics, f"ros2://{_resolved(node, 'output', values['output'])}", values)


def _resolved(node: Any, parameter: str, topic: str) -> str:
    try:
        return str(node.resolve_topic_name(topic))
    except Exception as error:  # of the middleware
        reason = " ".join(str(error).split())[:150]
        raise InputError(f"parameter {parameter}: {topic!r} is no name of a topic ({reason})") from None


def _descriptor(name: str) -> Any:
    from rcl_interfaces.msg import ParameterDescriptor

    return ParameterDescriptor(description=PARAMETERS[name][1], dynamic_typing=True)


class NodeStream:
    """The stream behind the node; ``tick`` answers its services and publishes its diagnostics."""

    def __init__(self, bus: Any, options: Options, resolver: Any) -> None:
        from diinn.runtime.geometry.calibration import Calibration
        from diinn.runtime.sinks.ros_topic import RosTopics
        from diinn.runtime.stream.settings import CameraSettings, open_sources
        from diinn.runtime.stream.stream import Stream

        values = options.values
        calibration = Calibration.load(values["calibration"]) if values["calibration"] else None
        self._views = _views(values["views"])
        settings = [
            CameraSettings(
                uri,
                views=self._views,
                max_fps=values["max_fps"] or None,
                calibration=calibration,
                denoise=_denoise(values["denoise"]),
            )
            for uri in options.topics
        ]
        self._bus, self._sources = bus, open_sources(settings)
        rest = options.output.partition("://")[2]
        query = f"?format={values['format']}&reliability={values['reliability']}"
        self._sink = RosTopics(rest + query, self._offered())
        self.stream = Stream(
            settings,
            resolver,
            sinks=[self._sink],
            deadline_ms=values["deadline_ms"] or None,
            sources=self._sources,
        )
        self._due = 0.0
        self._publisher = self._diagnostics()
        bus.node.add_on_set_parameters_callback(self._set)

    def _offered(self) -> list[tuple[Any, list[str]]]:
        return [(source, list(self._views)) for source in self._sources]

    def _diagnostics(self) -> Any:
        from diinn.runtime.util.ros import message_type

        try:
            return self._bus.node.create_publisher(message_type(DIAGNOSTICS), "/diagnostics", 10)
        except InputError as error:
            log.warning("no diagnostics: %s", error)
            return None

    def _set(self, parameters: Sequence[Any]) -> Any:
        """Change views and denoise while it runs; anything else is for the next start."""
        from rcl_interfaces.msg import SetParametersResult

        before, strengths = self._views, {lane.name: lane.denoise.wanted for lane in self.stream.lanes}
        try:
            for parameter in parameters:
                if parameter.name == "views":
                    self._set_views(parameter.value)
                elif parameter.name == "denoise":
                    for lane in self.stream.lanes:
                        self.stream.set_denoise(lane.name, _denoise(parameter.value) or "auto")
                elif parameter.name in PARAMETERS:
                    raise InputError(f"{parameter.name} is read at the start: start the node anew")
        except DiinnError as error:  # all or nothing
            if self._views is not before:
                self._take_views(before)
            for name, wanted in strengths.items():
                self.stream.set_denoise(name, wanted)
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _set_views(self, value: Any) -> None:
        before = self._views
        try:
            self._take_views(_views([value] if isinstance(value, str) else list(value or [])))
        except DiinnError:
            self._take_views(before)
            raise

    def _take_views(self, views: dict[str, Any]) -> None:
        self._views = views
        self._sink.offer(self._offered())
        for lane in self.stream.lanes:
            self.stream.set_views(lane.name, views)

    def tick(self) -> None:
        """Answer what was asked of the node, and publish the diagnostics if they are due."""
        for _ in range(CALLS):
            self._bus.spin(0)
        if time.monotonic() >= self._due and self._publisher is not None:
            self._due = time.monotonic() + DIAGNOSTICS_SECONDS
            self._publisher.publish(self._status())

    def _status(self) -> Any:
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
        from diinn.runtime.sources.base import FAILED, LIVE

        snapshot = self.stream.snapshot()
        message = DiagnosticArray()
        message.header.stamp = self._bus.node.get_clock().now().to_msg()
        resolver = self.stream.resolver
        hardware = f"{resolver.bundle.name}, {resolver.backend.describe()}"
        for name, camera in snapshot["cameras"].items():
            state = camera["state"]
            troubled = state != LIVE or bool(camera["trouble"])
            level = (
                DiagnosticStatus.ERROR
                if state == FAILED
                else DiagnosticStatus.WARN
                if troubled
                else DiagnosticStatus.OK
            )
            text = f"{state}: {camera['trouble']}" if camera["trouble"] else state
            values = {key: value for key, value in camera.items() if key not in ("state", "trouble")}
            message.status.append(
                DiagnosticStatus(
                    level=level,
                    name=f"diinn: {name}",
                    message=text,
                    hardware_id=hardware,
                    values=[KeyValue(key=key, value=value) for key, value in _flat(values)],
                )
            )
        return message


def _flat(values: dict[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Nested values as pairs of text: ``age_ms.p50`` and its number."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        found += _flat(value, f"{above}{key}.") if isinstance(value, dict) else [(above + key, str(value))]
    return found


def _views(texts: Sequence[str]) -> dict[str, Any]:
    from diinn.runtime.cli.run_options import named_views
    from diinn.runtime.geometry.view_spec import ViewSpec
    from diinn.runtime.stream.settings import DEFAULT_SCALE

    return named_views([text for text in texts if text]) or {"full": ViewSpec(scale=DEFAULT_SCALE)}


def _denoise(value: Any) -> Any:
    """As ``CameraSettings`` takes it; None for what it chooses itself."""
    from diinn.runtime.noise.strength import parse_denoise

    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"denoise {value} is no noise level")
    return None if value == "" else parse_denoise(str(value) if not isinstance(value, int | float) else float(value))


if __name__ == "__main__":
    sys.exit(main())
