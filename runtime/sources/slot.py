"""A buffer of one item between producer and consumer: what keeps a live stream from lagging."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition
from typing import Generic, TypeVar

T = TypeVar("T")


class Slot(Generic[T]):
    """Holds one thing at most.

    newest: a new thing replaces one that was not taken (live), otherwise ``put`` waits until it is taken (files)
    wake: called after each ``put``
    """

    def __init__(self, newest: bool, wake: Callable[[], None] = lambda: None) -> None:
        self.newest, self.wake = newest, wake
        self.replaced = 0  # things that were not taken
        self._held: T | None = None
        self._closed = False
        self._changed = Condition()

    def put(self, thing: T) -> bool:
        """Put a thing in; False once the slot is closed."""
        with self._changed:
            if not self.newest:
                self._changed.wait_for(lambda: self._held is None or self._closed)
            if self._closed:
                return False
            self.replaced += self._held is not None
            self._held = thing
        self.wake()
        return True

    def take(self) -> T | None:
        """Take the thing out; None if the slot is empty."""
        with self._changed:
            thing, self._held = self._held, None
            self._changed.notify_all()
        return thing

    @property
    def full(self) -> bool:
        return self._held is not None

    def close(self) -> None:
        """End every ``put``; what is held can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
