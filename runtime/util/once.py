"""Messages that are logged once, however often their cause occurs."""

from __future__ import annotations

from collections.abc import Hashable

MOST = 1000  # what is about names and sizes from outside may come in any number


class Once:
    """Remembers what was logged; up to ``MOST`` keys, after which nothing is new."""

    def __init__(self) -> None:
        self._keys: set[Hashable] = set()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._keys

    def first(self, key: Hashable) -> bool:
        """Whether ``key`` is new; it is not from then on."""
        if key in self._keys or len(self._keys) >= MOST:
            return False
        self._keys.add(key)
        return True

    def forget(self, key: Hashable) -> None:
        """Treat ``key`` as new again."""
        self._keys.discard(key)
