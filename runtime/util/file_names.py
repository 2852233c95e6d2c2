"""Names of files, which are bytes: as text to show, and as this process's locale writes them.

Python keeps bytes that are no text in its locale as lone surrogates. Where that is UTF-8 few names have any; in the
``C`` locale of a service or a container every name beyond ASCII has.
"""

from __future__ import annotations

import os
import re

LOCAL_FILE = re.compile(r"file:(?://localhost)?/(?!/)", re.IGNORECASE)
LONGEST = 255  # bytes, on almost all file systems
ENDING, KEPT = 12, 24  # bytes: the longest suffix that counts as one; the end of a long stem, which is kept


def as_utf8(name: str) -> str | None:
    """The text whose UTF-8 a name's bytes are, None where they are none."""
    try:
        return os.fsencode(name).decode("utf-8")
    except UnicodeDecodeError:
        return None
    except UnicodeEncodeError:  # no name of a file: a text from elsewhere
        return name if name.isascii() or _is_text(name) else None


def readable(name: str) -> str:
    r"""A name as text that can be written anywhere: bytes that are no UTF-8 become ``\xNN``."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode("utf-8")


def as_file(text: str) -> str:
    """Text from elsewhere than a command line or a folder, as the name of the file that bears it in UTF-8."""
    return os.fsdecode(text.encode("utf-8", "surrogateescape")) if _is_text(text) else text


def local(uri: str) -> str:
    """A file's URI in the form used here, ``file:///PATH``, from ``file:/PATH`` or ``file://localhost/PATH``."""
    found = LOCAL_FILE.match(uri)
    return f"file:///{uri[found.end() :]}" if found else uri


def fitting(name: str, longest: int = LONGEST) -> str:
    """A name of a file that is not too long for one: the middle of its stem is left out if need be."""
    data = os.fsencode(name)
    if len(data) <= longest:
        return name
    stem, dot, ending = data.rpartition(b".")
    if not dot or len(ending) > ENDING:
        stem, dot, ending = data, b"", b""
    room = longest - len(dot + ending) - KEPT
    kept = as_utf8(os.fsdecode(stem)) is not None
    start, end = stem[:room], stem[-KEPT:]
    if kept:  # no character is cut in two
        start, end = start.decode("utf-8", "ignore").encode(), end.decode("utf-8", "ignore").encode()
    return os.fsdecode(start + end + dot + ending)


def _is_text(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)
