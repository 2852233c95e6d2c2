"""Frames too large for the memory budget: encoded and decoded in bands of rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from diinn.runtime.backends.base import Backend
from diinn.runtime.bundles.bundle import Bundle, Levels
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.segments import Segment
from diinn.runtime.images.arrays import Image


def bands(size: Size, bundle: Bundle, budget: int) -> list[tuple[int, int, int, int]]:
    """Bands of rows (top, bottom) of a frame, each with the rows (low, high) to encode for it.

    The halo is the encoder's exact receptive field, so a band's maps equal the whole frame's. A band is
    at least as high as its two halos: below that, more than half the work would be done twice, and a
    budget that small is exceeded.
    """
    width, height = size
    rows = budget // (width * bundle.workspace)
    inner = max(rows - 2 * bundle.radius, 2 * bundle.radius, 1)
    count = -(-height // inner)
    edges = [height * i // count for i in range(count + 1)]
    return [
        (top, bottom, max(0, top - bundle.radius), min(height, bottom + bundle.radius))
        for top, bottom in itertools.pairwise(edges)
    ]


def largest(cut: Sequence[tuple[int, int, int, int]], width: int, bundle: Bundle) -> int:
    """Bytes that encoding the largest of some bands takes."""
    return max(high - low for _, _, low, high in cut) * width * bundle.workspace


def decode(backend: Backend, frame: Image, levels: Levels, segments: Sequence[Segment], budget: int) -> None:
    """Encode a frame band by band and decode of each what lies in it.

    segments: whole views of the frame
    """
    height, width = frame.shape[:2]
    cut = bands((width, height), backend.bundle, budget)
    # The highest first: an engine for it takes the others too.
    for top, bottom, low, high in sorted(cut, key=lambda band: band[2] - band[3]):
        parts = [Segment(s.queries, s.queries.in_rows(top, bottom), -low * width, s.out, s.border) for s in segments]
        parts = [part for part in parts if part.count]
        if parts:
            # Those of one band are gone before the next is encoded.
            maps = backend.encode([frame[low:high]], [levels])
            backend.decode(maps, parts)
            del maps
