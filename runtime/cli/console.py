"""What a running command prints, by a thread of its own: a blocked terminal or pipe stops nothing else."""

from __future__ import annotations

import contextlib
import copy
import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from diinn.runtime.stream.stop import ShutdownDeadline, Stop, join
from diinn.runtime.util.command_line import trace, unforeseen
from diinn.runtime.util.text import printable, shown

if TYPE_CHECKING:
    from rich.console import Console

MOST_WAITING = 1000  # lines; more are dropped while the output is blocked


class LineWriter:
    """Writes to one file, in order, until it is closed; its thread begins with the first line.

    file: None to discard everything
    error: what went wrong first; lost: lines that were dropped
    above: the console of a progress bar that is shown, above which lines for a terminal go
    """

    def __init__(self, file: TextIO | None) -> None:
        self.file = file
        self.error: Exception | None = None
        self.lost = 0
        self._closed = False
        self.above: Console | None = None
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="diinn-writer", daemon=True)

    def write(self, line: str) -> None:
        """Print ``line`` soon."""
        self.do(lambda: self._print(line))

    def do(self, work: Callable[[], None]) -> None:
        """Do ``work``, which writes to the file, soon."""
        if self._closed:
            return
        if self._thread.ident is None and not self._started():
            self._try(work)
            return
        try:
            self._waiting.put_nowait(work)
        except queue.Full:
            self.lost += 1

    def _started(self) -> bool:
        try:
            self._thread.start()
        except RuntimeError:  # no thread can be started: written here
            self._thread = threading.Thread(target=self._run, name="diinn-writer", daemon=True)
            return False
        return True

    def close(self, seconds: float, stop: Stop | None = None, interrupted_seconds: float = 0.0) -> bool:
        """Whether all was written within so many seconds, or ``interrupted_seconds`` after ``stop`` was interrupted.

        If not, the process cannot end normally: its output is blocked.
        """
        self._closed = True
        if self._thread.ident is None:
            return True
        limit = ShutdownDeadline(stop or Stop(), seconds)
        while True:
            try:
                self._waiting.put(None, timeout=0.02)
                break
            except queue.Full:
                if time.monotonic() >= limit.after(interrupted_seconds):
                    return False
        return join(self._thread, lambda: limit.after(interrupted_seconds))

    def _print(self, line: str) -> None:
        if self.file is None:
            return
        line = printable(line)  # names of files and cameras stand in it
        above = self.above  # another thread takes it away
        if above is not None and self.file.isatty():
            above.print(line, markup=False, highlight=False, soft_wrap=True)
            return
        encoding = self.file.encoding or "utf-8"  # names of files need not be text
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=self.file, flush=True)

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            self._try(work)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # a full disk, a reader that is gone: kept in ``error``
            self.error = self.error or error


class FileLineWriter(LineWriter):
    """Writes to a file of its own, which its thread opens with the first line: opening a pipe may block, too.

    After an error the next line tries again.
    """

    def __init__(self, path: str) -> None:
        super().__init__(None)
        self._path = path

    def _print(self, line: str) -> None:
        if self.file is None:
            self.file = open(self._path, "w", encoding="utf-8")  # noqa: SIM115
        super()._print(line)

    def _run(self) -> None:
        super()._run()
        try:
            if self.file is not None:
                self.file.close()
        except OSError as error:
            self.error = self.error or error


class Handler(logging.Handler):
    """Log records to a line writer, a line each; the trace of an error at level debug alone."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):  # as logging does: a line that cannot be written stops nothing
            error = record.exc_info[1] if record.exc_info else None
            plain = copy.copy(record)
            plain.exc_info = plain.exc_text = None
            line = self.format(plain)
            if error is not None and str(error) not in line:
                line += f": {unforeseen(error)}"
            self._writer.write(shown(line))
            if error is not None:
                trace(error)
