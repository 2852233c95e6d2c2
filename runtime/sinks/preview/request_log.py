"""The log of malformed requests: a line a minute, however many come."""

from __future__ import annotations

import logging
import time

from diinn.runtime.util.command_line import trace, unforeseen

SILENT_SECONDS = 60.0  # between two lines of one kind


class Quiet(logging.Filter):
    """Shortens what aiohttp logs of a request with a trace to one line, and passes one line a minute of each kind.

    The line holds the number of those before it: a scanner must not fill the disk.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next: dict[bool, float] = {}
        self._count = {False: 0, True: 0}

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        ours = error is not None and not _malformed(error)
        self._count[ours] += 1
        now = time.monotonic()
        if now < self._next.get(ours, 0.0):
            return False
        self._next[ours] = now + SILENT_SECONDS
        what = (
            f"a request failed, {unforeseen(error)}" if ours and error else "something that is no request of HTTP came"
        )
        record.msg, record.args = f"preview: {what} ({self._count[ours]} so far)", ()
        record.exc_info = record.exc_text = None
        if not ours:
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        elif error is not None:
            trace(error)
        return True


def _malformed(error: BaseException) -> bool:
    """Whether it is what a client sent; by module, since aiohttp has given its parser's errors several homes."""
    return any(kind.__module__ == "aiohttp.http_exceptions" for kind in type(error).__mro__)


def logger() -> logging.Logger:
    """For one server."""
    made = logging.Logger("diinn.runtime.sinks.preview.requests", logging.WARNING)
    made.parent = logging.getLogger("diinn.runtime.sinks.preview")  # as its child, but of this server alone
    made.addFilter(Quiet())
    return made
