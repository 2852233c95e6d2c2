"""What stands behind the ``?`` of a URI or of an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl

from diinn.runtime.errors import InputError, unknown


def pairs(query: str, where: str, known: Mapping[str, Sequence[str] | None]) -> list[tuple[str, str]]:
    """The options of ``key=value&key=value``, in order.

    Args:
        query: What is behind the ``?``.
        where: What it is of, for messages.
        known: The keys there are, and the values of each; None for any.

    Raises:
        InputError: A key or a value is none of ``known``.
    """
    found = parse_qsl(query, keep_blank_values=True)
    for key, value in found:
        if key not in known:
            raise InputError(f"{where}: " + unknown("option", key, known))
        values = known[key]
        if values is not None and value not in values:
            raise InputError(f"{where}: " + unknown(key, value, values))
    return found
