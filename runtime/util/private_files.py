"""Files that only this user can have written: engines, kernels and others that are executed."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from diinn.runtime.errors import DiinnError, InputError


class FileRejected(DiinnError):
    """A file must not be used; the message gives the reason."""


def check_owner(path: Path, what: str, found: os.stat_result) -> None:
    """FileRejected unless ``path``, whose status is ``found``, is this user's and not writable by others."""
    if not hasattr(os, "getuid"):
        return
    if found.st_uid != os.getuid():
        raise FileRejected(f"{what} {path} belongs to user {found.st_uid}, not to you")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise FileRejected(f"{what} {path} can be written by others: chmod go-w it")


def read_own(path: Path, most: int | None = None) -> bytes:
    """A file that is this user's alone to write, no link, of at most so many bytes; else FileRejected."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            check_owner(path, "file", found)
            if not stat.S_ISREG(found.st_mode):
                raise FileRejected(f"{path.name} is no file")
            if most is not None and found.st_size > most:
                raise FileRejected(f"{path.name} is larger than {most} bytes")
            return file.read()
    except OSError as error:
        raise FileRejected(f"{path.name} cannot be read: {error.strerror or error}") from None


def replace(path: Path, data: bytes) -> None:
    """Write ``path`` whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def cache_folder() -> Path:
    """``$DIINN_CACHE``, or ``engines`` in the user's cache folder for diinn."""
    chosen = os.environ.get("DIINN_CACHE")
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diinn" / "engines"
    except RuntimeError:  # neither HOME nor an entry in the list of users, as in some containers
        raise InputError("no home folder is known here: set DIINN_CACHE to a folder of your own") from None
