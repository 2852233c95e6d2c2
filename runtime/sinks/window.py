"""A window on the robot's own display."""

from __future__ import annotations

import os

import cv2
from diinn.runtime.errors import InputError
from diinn.runtime.stream.result import Result
from diinn.runtime.stream.sink import Sink
from diinn.runtime.stream.stop import Stop


class Window(Sink):
    """A window; q or Escape ends the run (``closed``).

    hold: keep a still image until a key is pressed; stop: ends the waiting for one
    """

    where = "display://0"
    threaded = False

    def __init__(self, title: str, hold: bool, stop: Stop) -> None:
        self._title, self._hold, self._stop = title, hold, stop
        self._shown = False
        try:
            cv2.namedWindow(title, cv2.WINDOW_AUTOSIZE)
        except cv2.error:
            raise InputError(
                "OpenCV cannot open a window here: use --headless, --output FILE, or an OpenCV with a GUI"
            ) from None

    def write(self, result: Result) -> None:
        cv2.imshow(self._title, result.image)
        self._shown = True
        while self._hold and not self._look(50) and not self.closed and not self._stop.requested:
            pass

    def idle(self) -> None:
        if self._shown:
            self._look(1)

    def _look(self, milliseconds: int) -> bool:
        """Let the window draw; whether a key was pressed."""
        key = cv2.waitKey(milliseconds)
        self.closed = self.closed or self._gone() or key & 0xFF in (ord("q"), 27)
        return key >= 0

    def _gone(self) -> bool:
        return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) < 1

    def close(self, *, failed: bool = False) -> None:
        cv2.destroyAllWindows()


def has_display() -> bool:
    """Whether a window could be seen."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
