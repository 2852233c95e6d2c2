"""What a sink is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diinn.runtime.stream.result import Result
    from diinn.runtime.stream.stream import Stream


class Sink(ABC):
    """A place for results; ``close`` finishes what is being written.

    where: its URI; closed: whether whoever watches has had enough
    threaded: whether a thread of its own writes (a window must not); zooms: whether viewers' own views go there too
    link: what to open in a browser
    closing_seconds: how long the end of a run waits for all of its kind after Ctrl-C
    """

    where: str
    closed = False
    threaded = True
    zooms = False
    link = ""
    closing_seconds = 0.8

    def attach(self, stream: Stream) -> None:  # noqa: B027  most do not care
        """Called once, before the first result, by the stream whose results these will be."""

    @abstractmethod
    def write(self, result: Result) -> None:
        """Take one result; it may take its time, and DiinnError says that nothing more can go there."""

    def idle(self) -> None:  # noqa: B027  most have nothing to do between two results
        """Called often where ``threaded`` is False."""

    def statistics(self) -> dict[str, Any]:
        """What is worth saying beside counts."""
        return {}

    def close(self, *, failed: bool = False) -> None:  # noqa: B027  most sinks have nothing to finish
        """Finish the file being written; ``failed`` says that the run ended in an error."""


class NullSink(Sink):
    """Statistics only."""

    where = "none"

    def write(self, result: Result) -> None:
        pass
