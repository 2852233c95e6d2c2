"""What is shown of names and messages: no passwords, nothing a terminal obeys."""

import time

import pytest
from diinn.runtime.util.text import printable, redacted, shown


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("no bundle 'rtsp://user:secret@host/x': give", "no bundle 'rtsp://…@host/x': give"),
        ("'http://u:sec ret@h/s' and 'a@b.png'", "'http://…@h/s' and 'a@b.png'"),
        ("unknown key 'RTSPS://u:se@cret@h'", "unknown key 'RTSPS://…@h'"),
        ('no bundle "rtsp://u:it\'s secret@h"', 'no bundle "rtsp://…@h"'),
        ("'rtsp:/u:secret@h' is", "'rtsp:/…@h' is"),
        ("'admin:secret@cam/live' is neither", "'…@cam/live' is neither"),
        ("http://u:sec ret@h it is", "http://…@h it is"),
        ("gst rtspsrc location=rtsp://u:secret@h user-pw=secret x", "gst rtspsrc location=rtsp://…@h user-pw=… x"),
        (
            "rtspsrc user-pw=\"my secret\" proxy-pw=secret srtsrc passphrase = 'secret' x",
            "rtspsrc user-pw=… proxy-pw=… srtsrc passphrase = … x",
        ),
        ("'http://h/x?token=secret&a=1'", "'http://h/x?token=…&a=1'"),
        ("write rtsp://USER:PASSWORD@HOST:PORT/PATH", "write rtsp://USER:PASSWORD@HOST:PORT/PATH"),
        ("rtsp://10.0.0.7:554/x: no route", "rtsp://10.0.0.7:554/x: no route"),
        ("mail@example.org and 12:30 stay", "mail@example.org and 12:30 stay"),
    ],
)
def test_user_and_password_never_show_and_the_host_does(line: str, shown: str) -> None:
    assert redacted(line) == shown


@pytest.mark.parametrize("line", [":" * 10**6, "a" * 10**6, ":@" * 500_000, "rtsp://" * 100_000, "'@:" * 300_000])
def test_a_long_line_takes_no_long_time(line: str) -> None:
    begun = time.process_time()
    redacted(line)
    assert time.process_time() - begun < 8  # one second here; a quadratic search would take hours


def test_what_a_terminal_would_obey_is_written_out() -> None:
    line = "\x1b[31mred\x07\r\n\x9b0m \u202egnp.exe \u2028é 日本\t"
    assert printable(line) == "\\x1b[31mred\\x07\\r\\n\\x9b0m \\u202egnp.exe \\u2028é 日本\t"


def test_names_are_text_in_any_locale() -> None:
    """Bytes of names that are no text in this process's locale, as Python keeps them and as repr() writes those."""
    name = "é日\udce9".encode("utf-8", "surrogateescape").decode("ascii", "surrogateescape")
    assert shown(f"output {name}, input {name!r}: ü") == r"output é日\xe9, input 'é日\xe9': ü"
    assert shown("\udcc2\udc9b0m") == r"\x9b0m"  # which a terminal would obey
