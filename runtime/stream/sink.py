"""The base class of sinks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from diinn.runtime.geometry.view_spec import ViewSpec
    from diinn.runtime.noise.strength import Denoise
    from diinn.runtime.stream.camera_lane import CameraLane
    from diinn.runtime.stream.result import Result
    from diinn.runtime.super_resolver import SuperResolver


class LiveStream(Protocol):
    """What a sink may use of the stream whose results it gets; ``Stream`` documents each."""

    resolver: SuperResolver

    @property
    def lanes(self) -> Sequence[CameraLane]: ...

    def lane(self, camera: str) -> CameraLane: ...

    def zoom(self, camera: str, spec: ViewSpec) -> str: ...

    def unzoom(self, camera: str, zoom: str) -> None: ...

    def set_denoise(self, camera: str, denoise: Denoise) -> None: ...

    def snapshot(self) -> dict[str, Any]: ...


class Sink(ABC):
    """A place for results. A subclass implements ``write``, and ``close`` where something is to be finished.

    Attributes:
        where: Its URI, for messages and statistics.
        closed: Whether its viewer has closed it, which ends the run.
        threaded: Whether a thread of its own calls ``write``; otherwise (a window) the thread that runs the stream.
        zooms: Whether the views that viewers open go there too.
        link: What to open in a browser; empty if there is nothing.
        closing_seconds: How long the end of a run waits for all sinks with this value after Ctrl-C.
    """

    where: str
    closed = False
    threaded = True
    zooms = False
    link = ""
    closing_seconds = 0.8

    def attach(self, stream: LiveStream) -> None:  # noqa: B027  most do not need it
        """Called once, before the first result.

        Args:
            stream: The stream whose results these will be.
        """

    @abstractmethod
    def write(self, result: Result) -> None:
        """Take one result; slow is fine, frames are dropped meanwhile.

        Args:
            result: Its ``image`` is shared and must not be written to.

        Raises:
            DiinnError: Nothing more can be written here; the stream goes on without this sink.
        """

    def wanted(self, camera: str, view: str) -> bool:
        """Whether anybody takes a view here, asked for each frame; one that nobody takes is not made.

        Args:
            camera: The camera's name.
            view: The view's.
        """
        return True

    def idle(self) -> None:  # noqa: B027  most have nothing to do between two results
        """Called often where ``threaded`` is False."""

    def statistics(self) -> dict[str, Any]:
        """What to report beside counts, as plain JSON values."""
        return {}

    def close(self, *, failed: bool = False) -> None:  # noqa: B027  most sinks have nothing to finish
        """Finish what is being written.

        Args:
            failed: Whether the run ended in an error.

        Raises:
            DiinnError: What was written is not complete.
        """


class NullSink(Sink):
    """Statistics only."""

    where = "none"

    def write(self, result: Result) -> None:
        pass


class CallbackSink(Sink):
    """Passes results to a function of the user's."""

    where = "callback"

    def __init__(self, function: Callable[[Result], None]) -> None:
        self._function = function

    def write(self, result: Result) -> None:
        self._function(result)
