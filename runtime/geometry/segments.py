"""Segments: queries of views over encoded frames and where their pixels go, and as the kernels take them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.geometry.grid import Float32, Ids, Int32, MapQueries, Queries, RegularQueries

# ``Segment`` of gpu/kernels/geometry.h, for kernels on a GPU and on a CPU.
SEGMENT = np.dtype(
    [(name, np.int64) for name in ("start", "first")]
    + [(name, np.uint64) for name in ("ids", "rows", "row_at", "cols", "col_at", "constants", "outside", "out")]
    + [(name, np.int32) for name in ("height", "width", "source_width", "offset")]
    + [("border", np.float32), ("bytes", np.int32)]
)


@dataclass(frozen=True)
class Segment:
    """Queries to decode and where their pixels go.

    Attributes:
        queries: The queries of a view.
        ids: Which of them.
        offset: First row of their frame in the maps.
        out: [h·w, 3] BGR, uint8 or float32 in units of [0, 1].
        border: Value of queries outside the frame, in units of [0, 1].
    """

    queries: Queries
    ids: Ids
    offset: int
    out: npt.NDArray[Any]
    border: float

    @property
    def count(self) -> int:
        return self.ids.stop - self.ids.start if isinstance(self.ids, slice) else len(self.ids)

    def part(self, start: int, stop: int) -> Segment:
        if isinstance(self.ids, slice):
            ids: Ids = slice(self.ids.start + start, self.ids.start + stop)
        else:
            ids = self.ids[start:stop]
        return Segment(self.queries, ids, self.offset, self.out, self.border)

    def fill_inputs(self, index: Int32, query: Float32) -> None:
        """Write the segment's rows of the maps and its queries."""
        self.queries.fill(self.ids, index, query)
        index += np.int32(self.offset)

    def write(self, rgb: Float32) -> None:
        """Store decoded RGB [n, 3] as BGR; uint8 is rounded and clamped, float32 is neither."""
        outside = self.queries.outside
        if outside is not None:
            rgb = np.where(outside[self.ids, None], np.float32(self.border), rgb)
        bgr = rgb[:, ::-1]
        if self.out.dtype == np.uint8:
            bgr = np.clip(np.rint(bgr * np.float32(255)), 0, 255).astype(np.uint8)
        self.out[self.ids] = bgr


Chunk = list[tuple[int, Segment]]  # (position of its first query in the chunk, segment)


def write(chunk: Chunk, rgb: Float32) -> None:
    """Store a chunk's decoded RGB [n, 3]."""
    for at, segment in chunk:
        segment.write(rgb[at : at + segment.count])


def pack(segments: Sequence[Segment], size: int) -> Iterator[Chunk]:
    """Segments cut and packed into chunks of at most ``size`` queries; several may share one."""
    chunk: Chunk = []
    used = 0
    for segment in segments:
        start = 0
        while start < segment.count:
            stop = min(segment.count, start + size - used)
            chunk.append((used, segment.part(start, stop)))
            used += stop - start
            start = stop
            if used == size:
                yield chunk
                chunk, used = [], 0
    if chunk:
        yield chunk


def tables(queries: Queries) -> dict[str, npt.NDArray[Any]]:
    """What a kernel looks up of a view's queries: arrays, by the field of ``SEGMENT`` that holds their address."""
    if isinstance(queries, RegularQueries):
        found: dict[str, npt.NDArray[Any]] = {
            "rows": np.concatenate([axis.index for axis in queries.rows]),
            "row_at": np.concatenate([axis.local for axis in queries.rows]),
            "cols": np.concatenate([axis.index for axis in queries.cols]),
            "col_at": np.concatenate([axis.local for axis in queries.cols]),
            "constants": queries.constants,
        }
    else:
        assert isinstance(queries, MapQueries)
        found = {"rows": queries.index, "row_at": queries.local, "constants": queries.ratio}
    if queries.outside is not None:
        found["outside"] = queries.outside.view(np.uint8)
    return {name: np.ascontiguousarray(table) for name, table in found.items()}
