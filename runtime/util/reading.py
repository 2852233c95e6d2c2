"""Small files from outside, read whole or refused: no more than they may hold, and no longer than a moment."""

from __future__ import annotations

import os
import select
import stat
import time
from pathlib import Path

from diinn.runtime.errors import InputError

PIPE_SECONDS = 10.0  # what a pipe, such as a shell's <(command), may take
BLOCK = 1 << 20
# Opening a pipe without a writer must not block. Windows has no such flag, but a text mode.
FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read(path: str | Path, most: int, what: str, kind: type[InputError] = InputError) -> bytes:
    """The content of a file, or of a pipe that is being written to.

    Args:
        path: The file.
        most: Bytes it may hold.
        what: What it is, for the message.
        kind: The error to raise.

    Raises:
        InputError: Of ``kind``: it cannot be read, is too large, or is a pipe without data for too long.
    """

    def refused(reason: str) -> InputError:
        return kind(f"cannot read {what} {str(path)!r}: {reason}")

    try:
        file = os.open(path, FLAGS)
    except ValueError:
        raise refused("its name holds a NUL character") from None
    except OSError as error:
        raise refused(error.strerror or str(error)) from None
    try:
        found = os.fstat(file)
        if stat.S_ISDIR(found.st_mode):
            raise refused("it is a folder")
        regular = stat.S_ISREG(found.st_mode)
        if regular and found.st_size > most:
            raise refused(_too_large(most))
        return _all(file, most, waits=not regular)
    except _UnreadableError as error:
        raise refused(str(error)) from None
    except OSError as error:
        raise refused(error.strerror or str(error)) from None
    finally:
        os.close(file)


def text(path: str | Path, most: int, what: str) -> str:
    """The same of UTF-8, with or without a byte order mark; InputError for anything else."""
    try:
        return read(path, most, what).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"cannot read {what} {str(path)!r}: it is no text, or not UTF-8") from None


class _UnreadableError(Exception):
    """Why a file that was opened is not read."""


def _all(file: int, most: int, *, waits: bool) -> bytes:
    parts: list[bytes] = []
    held, until = 0, time.monotonic() + PIPE_SECONDS
    while True:
        if waits:
            _wait(file, until)
        try:
            block = os.read(file, BLOCK)
        except BlockingIOError:  # another reader took it
            continue
        if not block:
            return b"".join(parts)
        parts.append(block)
        held += len(block)
        if held > most:
            raise _UnreadableError(_too_large(most))


def _wait(file: int, until: float) -> None:
    poll = select.poll()
    poll.register(file, select.POLLIN)
    if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
        raise _UnreadableError(f"nothing came within {PIPE_SECONDS:g} s")


def _too_large(most: int) -> str:
    size = f"{most / 2**20:g} MiB" if most >= 2**20 else f"{most / 2**10:g} KiB"
    return f"it is larger than {size}, which none should be"
