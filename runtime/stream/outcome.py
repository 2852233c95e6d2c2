"""Whether a stream has ended by itself, and the error that ended it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from diinn.runtime.errors import SourceError
from diinn.runtime.sources import Source
from diinn.runtime.sources.base import FAILED, RETRYING
from diinn.runtime.stream.sink_thread import SinkThread
from diinn.runtime.util.once import Once

log = logging.getLogger(__name__)


class Outcome:
    """What became of a stream's cameras and sinks.

    error: of the device, or of a camera that is not waited for; logged: failures that were logged while others went on
    """

    def __init__(self, sources: Sequence[Source], threads: Sequence[SinkThread], *, wait_for_cameras: bool) -> None:
        self.error: BaseException | None = None
        self.logged = Once()
        self._sources, self._threads, self._wait_for_cameras = sources, threads, wait_for_cameras

    def finished(self, *, sinks_are_all: bool) -> bool:
        """Whether every sink has ended, or a viewer its window, or no camera can be opened.

        sinks_are_all: whether results go to the sinks alone
        """
        if any(thread.sink.closed for thread in self._threads):
            return True
        if self._threads and sinks_are_all and all(thread.done for thread in self._threads):
            return True
        if self._wait_for_cameras or any(
            not s.live or s.captured or s.state not in (RETRYING, FAILED) for s in self._sources
        ):
            return False
        first = self._sources[0]
        self.error = first.failure or SourceError(
            f"camera {first.name} {first.trouble}: check {first.remedy}; --retries N waits for it"
        )
        return True

    def sink_failed(self, text: str, error: Exception | None) -> None:
        """Log why a sink takes no more; where it was the last one the stream ends with that error."""
        if any(not thread.done for thread in self._threads):
            self.logged.first(text)
            log.error("%s", text, exc_info=error)

    def log_failures(self) -> None:
        """Log once which cameras failed, while others go on."""
        if not any(source.captured and source.failure is None for source in self._sources):
            return
        for source in self._sources:
            text = str(source.failure) if source.failure is not None else ""
            if source.live and source.state == RETRYING and not source.captured:
                text = f"camera {source.name} {source.trouble}: it is tried again"
            if text and self.logged.first(text):
                log.error("%s", text)

    def check(self, *, interrupted: bool) -> None:
        """Raise what ended the stream, if it was an error.

        interrupted: whether the user did not wait for its end: sinks that were left then have not failed
        """
        if self.error is not None:
            raise self.error
        if self._threads and all(thread.failure and not (thread.abandoned and interrupted) for thread in self._threads):
            failure = self._threads[0].failure
            assert failure is not None
            raise failure
        lost = [source.failure for source in self._sources if source.failure is not None]
        if len(lost) == len(self._sources):
            raise lost[0]
