"""Text from outside, made safe to show: no terminal control characters, no passwords or tokens."""

from __future__ import annotations

import re

# Control characters, including line ends, and those that change the direction of text.
_CONTROL = re.compile("[\x00-\x08\n-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,20}:/+", re.IGNORECASE)
_WORDS = re.compile(r"([\s'\"]+)")
_NAMED = re.compile(
    r"((?:pass(?:word|wd|phrase)?|pwd?|token|secret|api_?key)\s*=\s*)(?:\"[^\"]*\"?|'[^']*'?|[^\s'\"&]+)", re.IGNORECASE
)
_BYTES = re.compile(r"(?:[\udc80-\udcff]|\\udc[89a-f][0-9a-f])+")  # of a name, as they are and as repr() has them
HIDDEN = "…"
EXAMPLE, _KEPT = "USER:PASSWORD@", "USER:PASSWORD\0"  # in examples of our own


def printable(text: str) -> str:
    r"""A line with control characters (colours, titles, cursor, a new line) written out: ``\x1b``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def shown(text: str) -> str:
    """A message for a terminal or a log: one line, without passwords and control characters.

    Names of files are written as text, whatever this process's locale is.
    """
    return printable(redacted(_BYTES.sub(_as_text, text)))


def _as_text(found: re.Match[str]) -> str:
    escaped = found[0].encode("ascii", "backslashreplace").decode()
    return bytes.fromhex(escaped.replace("\\udc", "")).decode("utf-8", "backslashreplace")


def redacted(text: str) -> str:
    """A line without user and password of an address, and without values named password, token or secret.

    The host stays. Takes time linear in the line's length.
    """
    line = text.replace(EXAMPLE, _KEPT)
    address = _SCHEME.search(line)
    if address is not None:  # a password may hold blanks and quotes
        end = line.rfind("@", address.end(), _end(line, address))
        line = line if end < 0 else line[: address.end()] + HIDDEN + line[end:]
    return _NAMED.sub(rf"\1{HIDDEN}", "".join(map(_word, _WORDS.split(line)))).replace(_KEPT, EXAMPLE)


def _end(line: str, address: re.Match[str]) -> int:
    """Where an address ends at the latest: at its closing quote, or with the line."""
    quote = line[address.start() - 1 : address.start()]
    if quote not in ("'", '"'):
        return len(line)
    inside = re.compile(rf"(?:\\.|[^{quote}\\])*").match(line, address.end())
    return inside.end() if inside else len(line)


def _word(word: str) -> str:
    """A word with an @: the part before it is hidden, where it looks like USER:PASSWORD."""
    before, at, host = word.rpartition("@")
    if not at or ":" not in before:
        return word
    scheme = _SCHEME.search(before)
    return (before[: scheme.end()] if scheme else "") + HIDDEN + at + host
