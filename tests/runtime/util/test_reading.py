"""Small files from outside: whole, or one line, and soon."""

import os
import threading
import time
from pathlib import Path

import pytest
from diinn.runtime import InputError
from diinn.runtime.util import reading


def test_files_and_pipes_are_read_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 100)
    assert reading.read(tmp_path / "a", 100, "a thing") == b"x" * 100
    ours, theirs = os.pipe()

    def write() -> None:
        for _ in range(3):
            time.sleep(0.05)
            os.write(theirs, b"y" * 1000)
        os.close(theirs)

    thread = threading.Thread(target=write)
    thread.start()
    assert reading.read(f"/dev/fd/{ours}", 3000, "a thing") == b"y" * 3000  # as a shell's <(command)
    thread.join()
    os.close(ours)


def test_a_byte_order_mark_is_none_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9")
    assert reading.text(tmp_path / "a", 100, "a thing") == "café"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none", "No such file"),
        ("folder", "it is a folder"),
        ("large", "it is larger than 1 KiB"),
        ("pipe", "nothing came"),
        ("lonely", "nothing came"),
        ("/dev/zero", "it is larger than 1 KiB"),
        ("a\0b", "its name holds a NUL character"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.setattr(reading, "PIPE_SECONDS", 0.2)
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(bytes(1025))
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "lonely")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # who holds it and writes nothing
    with pytest.raises(InputError, match=f"^cannot read a thing .*{reason}") as error:
        reading.read(tmp_path / name, 1024, "a thing")
    os.close(writer)
    assert "\n" not in str(error.value)
    assert "\0" not in str(error.value)


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="it is no text, or not UTF-8"):
        reading.text(tmp_path / "a", 1024, "a thing")
