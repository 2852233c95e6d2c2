"""What the kernels look up of the views that they decode, kept on the device."""

from __future__ import annotations

import weakref

import numpy as np
from diinn.runtime.geometry.grid import MapQueries, Queries, RegularQueries
from diinn.runtime.gpu.device import Device
from diinn.runtime.gpu.memory import Buffers

FLOAT, INT = 4, 4  # bytes
# ``Segment`` of kernels/geometry.h.
SEGMENT = np.dtype(
    [(name, np.int64) for name in ("start", "first")]
    + [(name, np.uint64) for name in ("ids", "rows", "row_at", "cols", "col_at", "constants", "outside", "out")]
    + [(name, np.int32) for name in ("height", "width", "source_width", "offset")]
    + [("border", np.float32), ("bytes", np.int32)]
)


class ViewTables:
    """What the kernels look up of one view's queries, on the device: fields of ``SEGMENT`` by name."""

    def __init__(self, device: Device, buffers: Buffers, queries: Queries) -> None:
        if isinstance(queries, RegularQueries):
            tables = {
                "rows": np.concatenate([axis.index for axis in queries.rows]),
                "row_at": np.concatenate([axis.local for axis in queries.rows]),
                "cols": np.concatenate([axis.index for axis in queries.cols]),
                "col_at": np.concatenate([axis.local for axis in queries.cols]),
                "constants": queries.constants,
            }
        else:
            assert isinstance(queries, MapQueries)
            tables = {"rows": queries.index, "row_at": queries.local, "constants": queries.ratio}
        if queries.outside is not None:
            tables["outside"] = queries.outside.view(np.uint8)
        blocks: list[tuple[int, int]] = []
        self._return = weakref.finalize(self, buffers.give, blocks)
        self.fields: dict[str, int] = {"height": queries.shape[0], "width": queries.shape[1]}
        self.fields["source_width"] = queries.src_width
        for name, table in tables.items():
            blocks.append(buffers.take(max(table.nbytes, 1)))
            self.fields[name] = blocks[-1][1]
            device.upload(blocks[-1][1], np.ascontiguousarray(table))
        device.wait()  # the host tables are freed when this returns


class Tables:
    """``ViewTables`` of the views in use, each uploaded once."""

    def __init__(self, device: Device, buffers: Buffers) -> None:
        self._device, self._buffers = device, buffers
        self._known: weakref.WeakKeyDictionary[Queries, ViewTables] = weakref.WeakKeyDictionary()

    def __getitem__(self, queries: Queries) -> ViewTables:
        if queries not in self._known:
            self._known[queries] = ViewTables(self._device, self._buffers, queries)
        return self._known[queries]
