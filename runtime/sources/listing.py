"""``--list-devices``: the cameras of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from diinn.runtime.sources.uri import has_gstreamer

NAMES = Path("/sys/class/video4linux")


def devices(names: Path = NAMES) -> Iterator[tuple[str, str]]:
    """(URI, description) of every local camera, and of what is always available.

    A driver makes several nodes for one camera; ``index`` above 0 are its metadata and further streams.
    """
    nodes = sorted(names.glob("video*"), key=lambda p: int(re.sub(r"\D", "", p.name) or 0)) if names.is_dir() else []
    for node in nodes:
        name = _line(node / "name") or "camera"
        first = _line(node / "index") in ("0", "")
        yield f"/dev/{node.name}", name if first else f"{name} (further node of the same device)"
    if has_gstreamer():
        yield "csi://N", "sensor N behind NVIDIA's Argus, where there is one; gst://PIPELINE too"
    yield "demo", "a synthetic camera"


def _line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
