"""What the kernels look up of the views that they decode, kept on the device."""

from __future__ import annotations

import weakref

from diinn.runtime.geometry.grid import Queries
from diinn.runtime.geometry.segments import tables
from diinn.runtime.gpu.device import Device
from diinn.runtime.gpu.memory import Buffers

FLOAT, INT = 4, 4  # bytes


class ViewTables:
    """What the kernels look up of one view's queries, on the device: fields of ``SEGMENT`` by name."""

    def __init__(self, device: Device, buffers: Buffers, queries: Queries) -> None:
        blocks: list[tuple[int, int]] = []
        self._return = weakref.finalize(self, buffers.give, blocks)
        self.fields: dict[str, int] = {"height": queries.shape[0], "width": queries.shape[1]}
        self.fields["source_width"] = queries.src_width
        for name, table in tables(queries).items():
            blocks.append(buffers.take(max(table.nbytes, 1)))
            self.fields[name] = blocks[-1][1]
            device.upload(blocks[-1][1], table)
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
