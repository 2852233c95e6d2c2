"""What may be shown of text from outside, names and messages: nothing a terminal obeys, nothing that may be secret."""

from __future__ import annotations

import re

# Control characters, ends of lines among them, and those that turn the direction of what follows.
_CONTROL = re.compile("[\x00-\x08\n-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,20}:/+", re.IGNORECASE)
_WORDS = re.compile(r"([\s'\"]+)")
_NAMED = re.compile(r"((?:pass(?:word|wd)?|pwd|user-pw|token|secret|api_?key)=)[^\s'\"&]+", re.IGNORECASE)
HIDDEN = "…"
EXAMPLE, _KEPT = "USER:PASSWORD@", "USER:PASSWORD\0"  # in examples of our own


def printable(text: str) -> str:
    """A line with what a terminal would obey (colours, titles, cursor, a new line) written out: ``\\x1b``."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def redacted(text: str) -> str:
    """A line without user and password of an address, wherever a user may have put it, and without what is called a
    password, token or secret. The host stays. Takes time linear in its length."""
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
    """A word with an @: what stands before it is hidden, where it looks like USER:PASSWORD."""
    before, at, host = word.rpartition("@")
    if not at or ":" not in before:
        return word
    scheme = _SCHEME.search(before)
    return (before[: scheme.end()] if scheme else "") + HIDDEN + at + host
