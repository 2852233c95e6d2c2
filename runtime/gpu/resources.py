"""What backends on a GPU share: memory that is used again, work that is replayed, what stays there."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry.grid import MapQueries, Queries, RegularQueries
from diinn.runtime.gpu.device import Device, OutOfMemory

log = logging.getLogger(__name__)
FLOAT, INT = 4, 4  # bytes
# ``Segment`` of kernels/geometry.h.
SEGMENT = np.dtype(
    [(name, np.int64) for name in ("start", "first")]
    + [(name, np.uint64) for name in ("ids", "rows", "row_at", "cols", "col_at", "constants", "outside", "out")]
    + [(name, np.int32) for name in ("height", "width", "source_width", "offset")]
    + [("border", np.float32), ("bytes", np.int32)]
)
MOST_IDLE, IDLE_BYTES = 32, 2**29  # of memory kept for another use
RECENT = 128  # takes: what came back since then is in steady use
RECENT_BYTES = 2**31  # of that, too, no more is kept
MOST_REPLAYS = 16


class Buffers:
    """Device memory that is used again: ``take`` gives (size, address) of at least so many bytes, ``give`` keeps it.

    idle: (size, address) of what nobody holds, longest idle first
    """

    def __init__(self, device: Device) -> None:
        self._device, self._closed = device, False
        self.idle: list[tuple[int, int]] = []
        self._taken = 0
        self._came_back: dict[int, int] = {}  # address: how many were taken before

    def take(self, size: int) -> tuple[int, int]:
        """Raises OutOfMemory, after giving back all that is idle. What fits is taken before anything is given back: the
        maps of one batch may be more than is kept idle."""
        self._taken += 1
        fitting = [block for block in self.idle if size <= block[0] <= 2 * size]
        if fitting:
            self.idle.remove(min(fitting))
            return min(fitting)
        self._keep(MOST_IDLE, IDLE_BYTES, RECENT)
        try:
            return size, self._device.allocate(size)
        except OutOfMemory:
            self._keep(0, 0, 0)
            return size, self._device.allocate(size)

    def give(self, blocks: Sequence[tuple[int, int]]) -> None:
        """Frees nothing, since the garbage collector may call it at any time: while a graph is captured, too."""
        if not self._closed:  # else the device has freed them already
            self._came_back.update((address, self._taken) for _, address in blocks)
            self.idle.extend(blocks)

    @contextlib.contextmanager
    def borrowed(self, *sizes: int) -> Iterator[list[int]]:
        """Addresses of so many bytes each, within."""
        blocks: list[tuple[int, int]] = []
        try:
            for size in sizes:
                blocks.append(self.take(size))
            yield [address for _, address in blocks]
        finally:
            self.give(blocks)

    def _keep(self, most: int, size: int, recent: int) -> None:
        """Free what is idle beyond so many blocks or bytes, longest idle first, but not what came back within the last
        ``recent`` takes, up to ``RECENT_BYTES``."""
        while self.idle and (len(self.idle) > most or sum(block[0] for block in self.idle) > size):
            address = self.idle[0][1]
            steady = self._taken - self._came_back[address] < recent
            if steady and sum(block[0] for block in self.idle) <= RECENT_BYTES:
                return
            del self.idle[0], self._came_back[address]
            self._device.free(address)

    def close(self) -> None:
        """The device is about to free everything itself."""
        self._closed = True


class Pinned:
    """Pinned host memory that grows to the largest array asked for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._bytes: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array on the same memory as the last one."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > self._bytes.nbytes:
            old, self._bytes = self._bytes, np.empty(0, np.uint8)
            if old.nbytes:
                self._device.unpin(old)
            self._bytes = self._device.pinned((size,), np.uint8)
        return self._bytes[:size].view(dtype).reshape(tuple(shape))


class DeviceMaps:
    """The maps of one batch on the device, [B·H·W, C] each; their memory is used again when nobody holds them.

    addresses: of each map; table: of memory for these addresses, which kernels read
    """

    def __init__(self, buffers: Buffers, sizes: Sequence[int]) -> None:
        blocks: list[tuple[int, int]] = []
        self._return = weakref.finalize(self, buffers.give, blocks)
        for size in (*sizes, 8 * len(sizes)):
            blocks.append(buffers.take(size))
        *self.addresses, self.table = [address for _, address in blocks]


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
        device.wait()  # the tables are gone when this returns


class Tables:
    """``ViewTables`` of the views in use, each uploaded once."""

    def __init__(self, device: Device, buffers: Buffers) -> None:
        self._device, self._buffers = device, buffers
        self._known: weakref.WeakKeyDictionary[Queries, ViewTables] = weakref.WeakKeyDictionary()

    def __getitem__(self, queries: Queries) -> ViewTables:
        if queries not in self._known:
            self._known[queries] = ViewTables(self._device, self._buffers, queries)
        return self._known[queries]


class Replays:
    """Work that comes again: done as it is the first time, captured as a CUDA graph the second, replayed from then on.

    A key must name all that the work depends on but what lies in memory: shapes, addresses, counts.
    count: of replays so far
    """

    def __init__(self, device: Device, *, wanted: bool) -> None:
        self._device, self._wanted, self.count = device, wanted, 0
        self._known: OrderedDict[Hashable, Callable[[], None] | None] = OrderedDict()

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        if not self._wanted:
            work()
            return
        if key not in self._known:  # libraries set themselves up in the first run of a shape
            work()
            self._known[key] = None
        else:
            replay = self._known[key] or self._captured(work)
            replay()
            self.count += self._wanted  # not what could not be captured
            self._known[key] = replay
        self._known.move_to_end(key)
        while len(self._known) > MOST_REPLAYS:
            self._known.popitem(last=False)

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        try:
            return self._device.capture(work)
        except DiinnError as error:
            log.warning("no CUDA graphs from here on: %s", error)
            self._wanted = False
            self._known.clear()
            return work

    def refuse(self) -> None:
        """Replay nothing."""
        self._wanted = False

    def forget(self) -> None:
        """What was captured does not hold any more."""
        self._known.clear()
