"""What a sink is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diinn.runtime.geometry.view_spec import ViewSpec
    from diinn.runtime.noise.strength import Denoise
    from diinn.runtime.stream.camera_lane import CameraLane
    from diinn.runtime.stream.result import Result
    from diinn.runtime.super_resolver import SuperResolver


class LiveStream(Protocol):
    """What a sink may ask of the stream whose results it gets: see ``Stream``, which says what each does."""

    resolver: SuperResolver

    @property
    def lanes(self) -> Sequence[CameraLane]: ...

    def lane(self, camera: str) -> CameraLane: ...

    def zoom(self, camera: str, spec: ViewSpec) -> str: ...

    def unzoom(self, camera: str, zoom: str) -> None: ...

    def set_denoise(self, camera: str, denoise: Denoise) -> None: ...

    def snapshot(self) -> dict[str, Any]: ...


class Sink(ABC):
    """A place for results; ``close`` finishes what is being written.

    where: its URI; closed: whether its viewer has closed it
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

    def attach(self, stream: LiveStream) -> None:  # noqa: B027  most do not care
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
