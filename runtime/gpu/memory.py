"""Memory on the device and pinned memory beside it, used again and again."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import OutOfMemory
from diinn.runtime.gpu.device import Device, Mark

MOST_IDLE, IDLE_BYTES = 32, 2**29  # of memory kept for another use
RECENT = 128  # takes: what came back since then is in steady use
RECENT_BYTES = 2**31  # at most so much of it is kept


class Buffers:
    """Device memory that is used again: ``take`` gives (size, address) of at least so many bytes, ``give`` returns it.

    idle: (size, address) of blocks that are not in use, longest idle first
    """

    def __init__(self, device: Device) -> None:
        self._device, self._closed = device, False
        self.idle: list[tuple[int, int]] = []
        self._taken = 0
        self._came_back: dict[int, int] = {}  # address: how many were taken before

    def take(self, size: int) -> tuple[int, int]:
        """(size, address) of at least ``size`` bytes; raises OutOfMemory, after freeing all idle blocks.

        A block that fits is taken before any is freed: the maps of one batch may be more than is kept idle.
        """
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
        """Return blocks; frees none, since the garbage collector may call it at any time: during a capture, too."""
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
        """Free what is idle beyond ``most`` blocks or ``size`` bytes, longest idle first.

        What came back within the last ``recent`` takes stays, up to ``RECENT_BYTES``.
        """
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
    """Pinned host memory that grows to the largest array requested.

    address: where kernels find it
    """

    def __init__(self, device: Device) -> None:
        self._device, self.address = device, 0
        self._bytes: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def array(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """An array on the same memory as the last one."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if size > self._bytes.nbytes:
            old, self._bytes = self._bytes, np.empty(0, np.uint8)
            if old.nbytes:
                self._device.unpin(old)
            self._bytes = self._device.pinned((size,), np.uint8)
            self.address = self._device.mapped(self._bytes)
        return self._bytes[:size].view(dtype).reshape(tuple(shape))

    def fill(self, byte: int) -> None:
        """Set all of it."""
        self._bytes.fill(byte)


class DeviceMaps:
    """The maps of one batch on the device, [B·H·W, C] each; their memory is used again once this object is freed.

    addresses: of each map; table: of memory for these addresses, which kernels read
    """

    def __init__(self, buffers: Buffers, sizes: Sequence[int]) -> None:
        self._ready_at = 0.0
        self._made: tuple[float, Mark, Mark] | None = None
        blocks: list[tuple[int, int]] = []
        self._return = weakref.finalize(self, buffers.give, blocks)
        for size in (*sizes, 8 * len(sizes)):
            blocks.append(buffers.take(size))
        *self.addresses, self.table = [address for _, address in blocks]

    def made_between(self, began: float, begin: Mark, end: Mark) -> None:
        """Note the marks around the work that makes them; began: ``time.perf_counter`` at the first."""
        self._made = began, begin, end

    @property
    def ready_at(self) -> float:
        """When they were complete, as ``time.perf_counter`` counts. Waits for it the first time."""
        if self._made is not None:
            began, begin, end = self._made
            self._ready_at, self._made = began + end.since(begin) / 1e3, None
        return self._ready_at
