"""Between the batcher and a sink: a slot for each stream, and a thread that may be slow."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from diinn.runtime.errors import DiinnError
from diinn.runtime.stream.result import ZOOM, Result
from diinn.runtime.stream.sink import Sink
from diinn.runtime.stream.stop import join

Key = tuple[str, str]  # (camera, view)


class Mailbox:
    """The newest result of every live stream, the next one of every other, until they are taken.

    keys: the streams it is for, None for all; zooms: whether viewers' own views are wanted too
    written, dropped: results that were taken, and those replaced or too old before they were
    on_taken: called with a result that left, and whether it was not too old; on_put: called after each ``put``
    """

    def __init__(self, keys: frozenset[Key] | None = None, *, zooms: bool = False) -> None:
        self.keys, self.zooms = keys, zooms
        self.on_taken: Callable[[Result, bool], None] = lambda result, used: None
        self.on_put: Callable[[], None] = lambda: None
        self.written = self.dropped = 0
        self._held: dict[Key, Result] = {}  # in the order in which they came to wait
        self._changed = threading.Condition()
        self._closed = False

    def accepts(self, key: Key) -> bool:
        if self._closed:
            return False
        return self.zooms if key[1].startswith(ZOOM) else self.keys is None or key in self.keys

    def has_room(self, key: Key) -> bool:
        """Whether a result of a stream that drops nothing can be put."""
        return key not in self._held or self._closed

    def put(self, result: Result) -> None:
        """Never waits: a result that was not taken is replaced, in its place in the queue."""
        with self._changed:
            self.dropped += result.key in self._held
            self._held[result.key] = result
            self._changed.notify_all()
        self.on_put()

    def take(self, timeout: float | None) -> Result | None:
        """The next result, streams in turn; None after ``timeout`` seconds, or when it is closed and empty."""
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            with self._changed:
                left = None if timeout is None else max(0.0, until - time.monotonic())
                self._changed.wait_for(lambda: self._closed or self._held, left)
                if not self._held:
                    return None
                result = self._held.pop(next(iter(self._held)))
            if time.monotonic() <= result.expires:
                break
            self.dropped += 1  # its camera has stalled since
            self.on_taken(result, False)
        self.written += 1
        self.on_taken(result, True)
        return result

    def close(self) -> None:
        """Accept nothing more; what is held can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


class SinkThread(Mailbox):
    """A mailbox whose results go to a sink, by a thread of its own or, for a window, whenever ``pump`` is called.

    on_written: called with the sink's milliseconds; failure: why the sink takes no more; on_failure: called with it,
        and with what is no error of the sink's own; abandoned: it was left before it had finished; thread: its own
    """

    def __init__(self, sink: Sink, keys: frozenset[Key] | None = None) -> None:
        super().__init__(keys, zooms=sink.zooms)
        self.sink = sink
        self.failure: Exception | None = None
        self.on_written: Callable[[float], None] = lambda milliseconds: None
        self.on_change: Callable[[], None] = lambda: None
        self.on_failure: Callable[[str, Exception | None], None] = lambda text, error: None
        self.abandoned = self._failed = False
        self.thread = threading.Thread(target=self._run, name=f"diinn-sink-{sink.where}", daemon=True)

    @property
    def done(self) -> bool:
        """Whether nothing more is written: it failed, or its viewer has closed it."""
        return self.failure is not None or self.sink.closed

    def accepts(self, key: Key) -> bool:
        return super().accepts(key) and self.sink.wanted(*key)

    def start(self) -> None:
        if self.sink.threaded:
            self.thread.start()

    def pump(self) -> None:
        """Write what is held, one result of each stream at most, in the caller's thread."""
        for _ in range(len(self._held)):
            if not self._closed and (result := self.take(0)) is not None:
                self._write(result)
        self.sink.idle()

    def end(self, *, failed: bool) -> None:
        """Begin to finish: write what is held, then close the sink; ``failed``: whether an error ended the stream."""
        self._failed = failed
        self.close()

    def wait(self, after: Callable[[float], float]) -> None:
        """Wait until it has finished, or its time is over; it is then abandoned.

        after: from ``closing_seconds`` to the time at which it is over, ``time.monotonic`` seconds
        """
        if not self.sink.threaded:
            self._run()
        elif self.thread is threading.current_thread():  # a callback ends the stream: this thread goes on from there
            return
        elif not join(self.thread, lambda: after(self.sink.closing_seconds)):
            self.failure = self.failure or DiinnError("it did not finish in time and was left")
            self.abandoned = True

    def _run(self) -> None:
        while not (self._closed and self.failure) and (result := self.take(None)) is not None:
            self._write(result)
        try:
            self.sink.close(failed=self._failed or self.failure is not None)
        except Exception as error:  # reported when the stream ends
            self.failure = self.failure or error

    def _write(self, result: Result) -> None:
        if self.failure is not None:
            return
        began = time.perf_counter()
        try:
            self.sink.write(result)
        except Exception as error:  # a full disk, a reader that is gone: the cameras and the other sinks go on
            self.failure = error
            self.close()
            if not isinstance(error, BrokenPipeError):  # the reader has ended, which it reports itself
                known = isinstance(error, DiinnError | OSError)
                self.on_failure(f"output {self.sink.where}: {error}", None if known else error)
        self.on_written((time.perf_counter() - began) * 1e3)
        self.on_change()
