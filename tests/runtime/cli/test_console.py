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
from diinn.runtime.cli.console import LineWriter
from served import until

COMMAND = (sys.executable, "-m", "diinn.runtime.cli.run", "--camera", "demo", "--input-size", "32x24")


def full_pipe() -> tuple[int, int]:
    """Both ends of a pipe that takes nothing more."""
    reading, writing = os.pipe()
    fill(writing)
    return reading, writing


def fill(writing: int) -> None:
    """Write to a pipe until it takes nothing more."""
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 1024)
    os.set_blocking(writing, True)


@pytest.mark.parametrize("stuck", ["stdout", "stderr"])
def test_a_reader_that_stands_still_stops_neither_statistics_nor_the_end(
    stuck: str, bundle_path: Path, tmp_path: Path
) -> None:
    stats, (reading, writing) = tmp_path / "s.jsonl", full_pipe()
    lost = ("--camera", "http://127.0.0.1:9/", "--retries", "forever", "--out-size", "64x48", "--output", "none")
    command = [*COMMAND, "--model", str(bundle_path), *lost, "--stats", str(stats)]
    process = subprocess.Popen(command, **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, stuck: writing})
    try:
        until(lambda: stats.exists() and stats.read_text().count("\n") >= 4)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.wait()
        os.close(reading)
        os.close(writing)
    assert json.loads(stats.read_text().splitlines()[-1])["type"] == "summary"


@pytest.mark.parametrize("ended", ["by itself", "by Ctrl-C"])
@pytest.mark.parametrize("opened", [False, True])
def test_statistics_for_a_pipe_that_nobody_reads(opened: bool, ended: str, bundle_path: Path, tmp_path: Path) -> None:
    pipe, frames = tmp_path / "pipe", tmp_path / "frames"
    os.mkfifo(pipe)
    ours = os.open(pipe, os.O_RDWR | os.O_NONBLOCK) if opened else None
    if ours is not None:
        fill(ours)
    seconds = "1" if ended == "by itself" else "60"
    words = ["--output", str(frames / "*.png"), "--stats", str(pipe), "--duration", seconds]
    process = subprocess.Popen([*COMMAND, "--model", str(bundle_path), *words], stderr=subprocess.PIPE)
    try:
        until(lambda: len(list(frames.glob("*.png"))) > 0)
        if ended == "by Ctrl-C":
            process.send_signal(signal.SIGINT)
        _, output = process.communicate(timeout=25)
    finally:
        process.kill()
        process.wait()
        if ours is not None:
            os.close(ours)
    assert process.returncode == 1
    assert output.decode().endswith("lacks lines: it was not read for too long, or its disk hangs\n")


def test_ctrl_c_ends_the_wait_for_a_reader_of_statistics(bundle_path: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = ["--output", "none", "--stats", str(pipe), "--max-frames", "2"]
    process = subprocess.Popen([*COMMAND, "--model", str(bundle_path), *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        until(lambda: "2 frames" in process.stdout.readline(), 40)  # what comes before the wait
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 1
    finally:
        process.kill()
        process.communicate()
    assert time.monotonic() - began < 6  # of ten seconds


def test_statistics_for_a_pipe_that_is_read(bundle_path: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    words = ["--output", "none", "--stats", str(pipe), "--duration", "1.5"]
    process = subprocess.Popen([*COMMAND, "--model", str(bundle_path), *words])
    try:
        text = subprocess.run(["cat", pipe], capture_output=True, timeout=60, check=True).stdout
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
    assert json.loads(text.splitlines()[-1])["type"] == "summary"


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
    assert process.wait(20) == 0, shown.decode()[-2000:]
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()))
    assert any(re.match(r"demo: 32x24 -> 64x48 .* output none$", line) for line in lines)
    assert any(re.match(r"\d+ frames?, .* output: none$", line) for line in lines)
    assert any("frames/s, age" in line and "━" in line for line in lines)


def test_statistics_go_to_standard_output_whatever_the_terminal_shows(bundle_path: Path, tmp_path: Path) -> None:
    terminal, ours = pty.openpty()
    command = [*COMMAND, "--model", str(bundle_path), "--output", "none", "--duration", "2.5", "--stats", "-"]
    with (tmp_path / "s.jsonl").open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=ours, env={**os.environ, "TERM": "xterm"})
        os.close(ours)
        with contextlib.suppress(OSError):
            while os.read(terminal, 65536):
                pass
    os.close(terminal)
    assert process.wait(20) == 0
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [line["type"] for line in lines][-2:] == ["second", "summary"]


@pytest.mark.parametrize(
    ("words", "streams", "code"),
    [
        (["--stats", "-"], {"stdout": "/dev/full"}, 1),
        (["--stats", "-"], {"stderr": "/dev/full"}, 0),
        ([], {"stdout": "/dev/full"}, 1),
        (["--camera", "http://127.0.0.1:9/", "--retries", "forever"], {"stderr": "/dev/full"}, 0),
    ],
)
def test_a_full_disk_behind_the_output(bundle_path: Path, words: list[str], streams: dict[str, str], code: int) -> None:
    command = [*COMMAND, "--model", str(bundle_path), "--output", "none", "--duration", "1.5", *words]
    files = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with contextlib.ExitStack() as opened:
        full = {name: opened.enter_context(Path(path).open("wb")) for name, path in streams.items()}
        process = subprocess.run(command, **{**files, **full}, timeout=60)
    assert process.returncode == code
    if "stdout" in streams:
        assert b"diinn-run: No space left on device" in process.stderr


def test_what_nobody_reads_is_left_out_and_what_is_read_is_in_order() -> None:
    done: list[int] = []
    stuck = threading.Event()
    writer = LineWriter(None)
    writer.do(lambda: stuck.wait(20) and None)
    until(lambda: not writer._waiting.qsize())
    for number in range(3000):
        writer.do(lambda number=number: done.append(number))
    assert not writer.close(0.1)
    stuck.set()
    assert writer.close(10)
    assert done == list(range(1000))
    assert writer.lost == 2000


def test_a_reader_that_has_gone_is_told() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with contextlib.suppress(BrokenPipeError), open(writing, "w", encoding="utf-8", buffering=1) as pipe:
        writer = LineWriter(pipe)
        writer.write("hello")
        assert writer.close(10)
        assert isinstance(writer.error, BrokenPipeError)


def test_names_that_are_no_text_are_said(tmp_path: Path) -> None:
    with (tmp_path / "said").open("w", encoding="ascii") as file:
        writer = LineWriter(file)
        writer.write("caf\udce9.png, café")
        assert writer.close(10)
    assert (tmp_path / "said").read_text() == "caf\\udce9.png, caf\\xe9\n"
    assert writer.error is None


@pytest.mark.parametrize("closed", ["0 1", "1 2", "0 1 2"])
def test_closed_descriptors_are_no_cameras_trouble(bundle_path: Path, tmp_path: Path, closed: str) -> None:
    command = [*COMMAND, "--model", str(bundle_path), "--output", str(tmp_path / "x.mp4"), "--duration", "1"]
    close = " ".join(f"{number}>&-" for number in closed.split())
    assert subprocess.run(["sh", "-c", f'exec "$@" {close}', "sh", *command], timeout=60).returncode == 0
    assert (tmp_path / "x.mp4").stat().st_size > 0


@pytest.mark.parametrize("words", [["--output", "-"], ["--output", "none", "--stats", "-"]])
def test_a_closed_standard_output_that_is_wanted_is_said(bundle_path: Path, words: list[str]) -> None:
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *COMMAND, "--model", str(bundle_path), "--duration", "1", *words]
    process = subprocess.run(command, stderr=subprocess.PIPE, timeout=60)
    assert process.returncode == 2
    assert b"writes to standard output, which is closed" in process.stderr


def processed(stats: Path) -> int:
    """Frames, by the last whole line of the statistics."""
    lines = stats.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    return int(json.loads(whole[-1])["processed"]) if whole else 0


def test_ctrl_c_while_the_reader_of_frames_stands_still(bundle_path: Path, tmp_path: Path) -> None:
    reading, writing = full_pipe()
    stats = tmp_path / "s.jsonl"
    command = [*COMMAND, "--model", str(bundle_path), "--out-size", "64x48", "--output", "-", "--stats", str(stats)]
    process = subprocess.Popen(command, stdout=writing, stderr=subprocess.PIPE)
    until(lambda: stats.exists() and processed(stats) > 0)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=20)
    os.close(reading)
    os.close(writing)
    assert process.returncode == 130
    assert b"dropped; output: " in output
    assert b"did not finish" not in output
