"""``--list-devices``: the cameras of this machine, and of the robot's bus."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from diinn.runtime.errors import DiinnError
from diinn.runtime.sources import ros_topic
from diinn.runtime.sources.uri import has_gstreamer
from diinn.runtime.util import ros

log = logging.getLogger(__name__)
NAMES = Path("/sys/class/video4linux")


def devices(names: Path = NAMES) -> Iterator[tuple[str, str]]:
    """(URI, description) of every local camera and image topic, and of what is always available.

    A driver makes several nodes for one camera; ``index`` above 0 are its metadata and further streams.
    """
    nodes = sorted(names.glob("video*"), key=lambda p: int(re.sub(r"\D", "", p.name) or 0)) if names.is_dir() else []
    for node in nodes:
        name = _line(node / "name") or "camera"
        first = _line(node / "index") in ("0", "")
        yield f"/dev/{node.name}", name if first else f"{name} (further node of the same device)"
    if has_gstreamer():
        yield "csi://N", "sensor N behind NVIDIA's Argus, where there is one; gst://PIPELINE too"
    if ros.there("rclpy"):
        yield from _topics()
    yield "demo", "a synthetic camera"


def _topics() -> Iterator[tuple[str, str]]:
    """The image topics on the robot's bus."""
    try:
        for name, kind in ros_topic.topics_here(ros.DISCOVERY_SECONDS):
            yield (
                f"{ros_topic.SCHEME}://{name}",
                "a topic of images" if kind == "raw" else "a topic of compressed images",
            )
    except DiinnError as error:  # an installation that is not whole
        log.warning("no topics are listed: %s", error)


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
