"""What a running command says, by a thread of its own: a terminal or pipe that stands still stops nothing else."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

MOST_WAITING = 1000  # lines; what nobody reads is left out


class Teller:
    """Prints and does, in order, what it is given, until it is closed.

    console: of a progress bar that is shown, above which lines go
    """

    def __init__(self) -> None:
        self.console: Console | None = None
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="diinn-teller", daemon=True)
        self._thread.start()

    def say(self, line: str, file: TextIO) -> None:
        """Print ``line`` soon."""

        def tell() -> None:
            if self.console is not None and file.isatty():
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                print(line, file=file, flush=True)

        self.do(tell)

    def do(self, work: Callable[[], None]) -> None:
        """Do ``work``, which writes to where somebody may not read."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(work)

    def check(self) -> None:
        """Raise what went wrong: BrokenPipeError where a reader has gone, or another OSError."""
        if self._error is not None:
            raise self._error

    def close(self, seconds: float) -> bool:
        """Whether all was told within about so many seconds. If not, the process cannot end as others do: its output
        is held."""
        try:
            self._waiting.put(None, timeout=seconds)
        except queue.Full:
            return False
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            try:
                work()
            except OSError as error:
                self._error = self._error or error


class Handler(logging.Handler):
    """Log records to a teller, on standard error."""

    def __init__(self, teller: Teller) -> None:
        super().__init__()
        self._teller = teller

    def emit(self, record: logging.LogRecord) -> None:
        self._teller.say(self.format(record), sys.stderr)
