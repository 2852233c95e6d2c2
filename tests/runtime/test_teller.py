"""What a running command says, where nobody reads it."""

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from diinn.runtime.teller import Teller
from served import until

COMMAND = (sys.executable, "-m", "diinn.runtime.main", "--camera", "demo", "--input-size", "32x24")


def full_pipe() -> tuple[int, int]:
    """Both ends of a pipe that takes nothing more."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 1024)
    os.set_blocking(writing, True)
    return reading, writing


@pytest.mark.parametrize("stuck", ["stdout", "stderr"])
def test_a_reader_that_stands_still_stops_neither_statistics_nor_the_end(
    stuck: str, bundle_path: Path, tmp_path: Path
) -> None:
    stats, (reading, writing) = tmp_path / "s.jsonl", full_pipe()
    lost = ("--camera", "http://127.0.0.1:9/", "--retries", "forever", "--out-size", "64x48", "--output", "none")
    command = [*COMMAND, "--model", str(bundle_path), *lost, "--stats", str(stats)]
    process = subprocess.Popen(command, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stuck: writing})
    try:
        until(lambda: stats.exists() and stats.read_text().count("\n") >= 4, 40)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
    assert json.loads(stats.read_text().splitlines()[-1])["type"] == "summary"


def test_lines_stand_above_the_progress_bar(bundle_path: Path) -> None:
    terminal, ours = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "--model", str(bundle_path), "--out-size", "64x48", "--output", "none", "--duration", "2"],
        stdout=ours,
        stderr=ours,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(ours)
    shown = b""
    with contextlib.suppress(OSError):  # the other end is closed
        while part := os.read(terminal, 65536):
            shown += part
    os.close(terminal)
    assert process.wait(20) == 0
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()))
    assert any(re.match(r"demo: 32x24 -> 64x48 .* output none$", line) for line in lines)
    assert any(re.match(r"\d+ frames?, .* output: none$", line) for line in lines)
    assert any("frames/s, age" in line and "━" in line for line in lines)


def test_what_nobody_reads_is_left_out_and_what_is_read_is_in_order() -> None:
    told: list[int] = []
    stuck = threading.Event()
    teller = Teller()
    teller.do(lambda: stuck.wait(20) and None)
    began = time.monotonic()
    for number in range(3000):
        teller.do(lambda number=number: told.append(number))
    assert time.monotonic() - began < 10
    assert not teller.close(0.1)
    stuck.set()
    assert teller.close(10)
    assert told == list(range(len(told)))
    assert 900 <= len(told) <= 1001


def test_a_reader_that_has_gone_is_told() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    teller = Teller()
    with open(writing, "w", encoding="utf-8", buffering=1, closefd=True) as pipe:
        teller.say("hello", pipe)
        assert teller.close(10)
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    with pytest.raises(BrokenPipeError):
        teller.check()
