"""Repeated work, replayed as CUDA graphs."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

from diinn.runtime.errors import DiinnError
from diinn.runtime.gpu.device import Device

log = logging.getLogger(__name__)
MOST_GRAPHS = 16


class GraphCache:
    """Repeated work: run directly the first time, captured as a CUDA graph the second, replayed from then on.

    A key must name all that the work depends on except the contents of memory: shapes, addresses, counts. Where most of
    what is captured is not seen again, as with batches whose size changes, no more is captured.
    count: of graphs launched so far
    """

    def __init__(self, device: Device, *, wanted: bool) -> None:
        self._device, self._wanted, self.count = device, wanted, 0
        self._captures = 0
        self._known: OrderedDict[Hashable, Callable[[], None] | None] = OrderedDict()

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        if not self._wanted:
            work()
            return
        if key not in self._known:  # libraries set themselves up in the first run of a shape
            work()
            self._known[key] = None
            while len(self._known) > MOST_GRAPHS:
                self._known.popitem(last=False)
            return
        replay = self._known[key] or self._captured(work)
        if replay is None:
            work()
            return
        replay()
        self.count += 1
        self._known[key] = replay
        self._known.move_to_end(key)
        if self._captures > max(MOST_GRAPHS, self.count - self._captures):
            log.info("no CUDA graphs from here on: most of them are captured in vain")
            self.refuse()

    def _captured(self, work: Callable[[], None]) -> Callable[[], None] | None:
        """``work`` as a graph; None where it cannot be, and nothing is from then on."""
        self._captures += 1
        try:
            return self._device.capture(work)
        except DiinnError as error:
            log.warning("no CUDA graphs from here on: %s", error)
            self.refuse()
            return None

    def refuse(self) -> None:
        """Replay nothing."""
        self._wanted = False
        self.forget()

    def forget(self) -> None:
        """Drop what was captured: it is no longer valid."""
        self._known.clear()
