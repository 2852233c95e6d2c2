"""Frames for other programs: POSIX shared memory, read here and by a program in C, and a pipe."""

import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Event, Thread

import numpy as np
import pytest
from conftest import ROOT
from diinn.benchmarks.mjpeg_server import burn, burnt
from diinn.runtime import DiinnError, InputError, SharedReader
from diinn.runtime.sinks.shared_memory import FOLDER, SharedWriter, segment
from diinn.runtime.sources import demo
from served import until

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no POSIX shared memory here")
COMMAND = (sys.executable, "-m", "diinn.runtime.cli.run", "--camera", "demo", "--input-size", "64x48")


@pytest.fixture
def name() -> Iterator[str]:
    found = f"diinn-test-{os.getpid()}-{time.monotonic_ns()}"
    yield found
    assert not segment(found).exists(), "the name was left behind"


def picture(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    image = demo.frame(number / 10, size)
    burn(image, number)
    return image


def test_what_is_written_is_read_in_place(name: str) -> None:
    writer = SharedWriter(name, "front", "whole")
    with pytest.raises(DiinnError, match="is empty yet"):
        SharedReader(name)
    writer.publish(picture(7), 7, 1.5e9, 3.25, 2)
    reader = SharedReader(name)
    assert (reader.camera, reader.view) == ("front", "whole")
    frame = reader.newest()
    assert frame is not None
    np.testing.assert_array_equal(frame.image, picture(7))
    assert (frame.number, frame.sequence, frame.captured, frame.arrived, frame.quality) == (1, 7, 1.5e9, 3.25, 2)
    assert not frame.image.flags.writeable
    assert not frame.image.flags.owndata
    assert reader.newest(after=1) is None
    for number in range(8, 11):
        writer.publish(picture(number), number, 0, 0, 0)
    assert reader.still_valid(frame)  # four slots: it is still there
    writer.publish(picture(11), 11, 0, 0, 0)
    assert not reader.still_valid(frame)
    del frame
    writer.close()
    assert reader.closed
    reader.close()


def test_a_larger_frame_moves_and_the_reader_is_told(name: str) -> None:
    writer = SharedWriter(name, "front", "whole")
    writer.publish(picture(1), 1, 0, 0, 0)
    reader = SharedReader(name)
    writer.publish(picture(2, (320, 240)), 2, 0, 0, 0)
    assert reader.closed
    moved = SharedReader(name)
    frame = moved.newest()
    assert frame is not None
    assert frame.image.shape == (240, 320, 3)
    writer.publish(picture(3, (32, 24)), 3, 0, 0, 0)  # smaller ones fit
    assert not moved.closed
    writer.close()


def test_a_reader_never_keeps_a_torn_frame(name: str) -> None:
    """Each frame is one colour, its number; a thread writes as fast as it can."""
    writer, stop = SharedWriter(name, "front", "whole"), Event()
    writer.publish(np.zeros((240, 320, 3), np.uint8), 0, 0, 0, 0)

    def write() -> None:
        count = 0
        while not stop.is_set():
            count += 1
            writer.publish(np.full((240, 320, 3), count % 256, np.uint8), count, 0, 0, 0)

    thread = Thread(target=write)
    thread.start()
    reader, kept, last = SharedReader(name), 0, 0
    begin = time.monotonic()
    while time.monotonic() < begin + 2 or (kept < 3 and time.monotonic() < begin + 60):  # a busy machine takes longer
        frame = reader.newest(last)
        if frame is None:
            continue
        colours = np.unique(frame.image)
        if reader.still_valid(frame):
            assert colours.tolist() == [frame.sequence % 256]
            assert frame.number > last
            kept, last = kept + 1, frame.number
    stop.set()
    thread.join()
    writer.close()
    assert kept >= 3


def test_a_name_is_one_writers_and_survives_a_kill(name: str) -> None:
    code = f"""
import sys, time, numpy as np
from diinn.runtime.sinks.shared_memory import SharedWriter
writer = SharedWriter({name!r}, "a", "b")
writer.publish(np.zeros((4, 4, 3), np.uint8), 0, 0, 0, 0)
print("there", flush=True)
time.sleep(60)
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "there\n"
    with pytest.raises(InputError, match="is in use by another process"):
        SharedWriter(name, "a", "b")
    reading = SharedReader(name)
    other.kill()
    other.communicate()
    assert segment(name).exists()
    writer = SharedWriter(name, "a", "b")  # what was left is taken over
    assert reading.closed  # which its reader sees, and may go on reading
    frame = reading.newest()
    assert frame is not None
    assert frame.image.sum() == 0
    del frame
    reading.close()
    assert segment(name).stat().st_mode & 0o777 == 0o600
    writer.close()


def test_of_two_writers_that_start_together_one_gets_the_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other comes in between, right before the first has locked its file."""
    others: list[SharedWriter] = []
    lock = fcntl.flock

    def late(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", lock)
        others.append(SharedWriter(name, "other", "b"))
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match="is in use by another process"):
        SharedWriter(name, "a", "b")
    others[0].publish(picture(1), 1, 0, 0, 0)
    assert SharedReader(name).camera == "other"
    others[0].close()
    assert not list(FOLDER.glob(".diinn-*"))


def test_writers_by_the_dozen_leave_one(name: str) -> None:
    barrier, won, refused = Barrier(12), [], []

    def take() -> None:
        barrier.wait()
        try:
            won.append(SharedWriter(name, "a", "b"))
        except InputError as error:
            refused.append(str(error))

    threads = [Thread(target=take) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(refused)) == (1, 11)
    won[0].close()


def test_who_lost_the_name_does_not_remove_it(name: str) -> None:
    writer = SharedWriter(name, "a", "b")
    writer.publish(picture(1), 1, 0, 0, 0)
    segment(name).unlink()  # somebody's rm
    other = SharedWriter(name, "other", "b")
    writer.close()
    assert segment(name).exists()
    other.close()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_is_no_file_is_no_segment(name: str, kind: str, tmp_path: Path) -> None:
    path = segment(name)
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to(tmp_path / "x")}[kind]()
    try:
        with pytest.raises(InputError, match=f"shm://{name}"):
            SharedWriter(name, "a", "b")
        with pytest.raises(DiinnError, match=f"shm://{name}"):
            SharedReader(name)
        assert path.lstat()
    finally:
        path.rmdir() if kind == "folder" else path.unlink()


WRONG_HEADERS = {
    "no slots": {"slots": 0},
    "endless slots": {"slots": 2**32 - 1},
    "huge stride": {"stride": 2**63},
    "a stride that overflows": {"stride": 2**62, "slots": 4},
    "no stride": {"stride": 0},
    "first beyond": {"first": 2**32 - 8},
    "first in the header": {"first": 0},
    "odd first": {"first": 4097},
    "pixels beyond": {"pixels": 2**32 - 1},
    "pixels in the slot": {"pixels": 8},
}
WRONG_SLOTS = {
    "wide": {"width": 2**32 - 1},
    "high": {"height": 2**31},
    "no width": {"width": 0},
    "long rows": {"row": 2**32 - 1},
    "short rows": {"row": 3},
    "format": {"kind": 7},
}
HEADER_FIELDS = {"first": (12, "<I"), "slots": (16, "<I"), "pixels": (20, "<I"), "stride": (24, "<Q")}
SLOT_FIELDS = {"width": (8, "<I"), "height": (12, "<I"), "row": (16, "<I"), "kind": (20, "<I")}


@pytest.fixture(scope="module")
def reader_in_c(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here: apt-get install gcc")
    path = tmp_path_factory.mktemp("c") / "read_frames"
    source = ROOT / "runtime" / "examples" / "read_frames.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", path, source], check=True)
    return path


def poke(name: str, fields: dict[str, int], places: dict[str, tuple[int, str]], base: int = 0) -> None:
    with segment(name).open("r+b") as file:
        for field, value in fields.items():
            at, form = places[field]
            file.seek(base + at)
            file.write(struct.pack(form, value))


@pytest.mark.parametrize("case", [*WRONG_HEADERS, *WRONG_SLOTS])
def test_numbers_that_lie_are_not_followed(name: str, case: str, reader_in_c: Path) -> None:
    """By either reader: the file may be anybody's."""
    writer = SharedWriter(name, "a", "b")
    writer.publish(picture(1), 1, 0, 0, 0)
    if case in WRONG_HEADERS:
        poke(name, WRONG_HEADERS[case], HEADER_FIELDS)
    else:
        poke(name, WRONG_SLOTS[case], SLOT_FIELDS, 4096)
    with pytest.raises(DiinnError, match=rf"shm://{name} (is damaged|holds what is no frame)"):
        SharedReader(name).newest()
    done = subprocess.run([reader_in_c, name, "1"], capture_output=True, text=True, timeout=20, check=False)
    writer.close()
    assert done.returncode == 1
    assert "is damaged" in done.stderr or "holds what is no frame" in done.stderr


def test_a_segment_that_is_cut_is_said(name: str, reader_in_c: Path) -> None:
    writer = SharedWriter(name, "a", "b")
    writer.publish(picture(1), 1, 0, 0, 0)
    reader = SharedReader(name)
    with subprocess.Popen([reader_in_c, name, "9"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline().startswith("1 64x48 ")  # it waits for the second
        os.truncate(segment(name), 0)
        _, err = other.communicate(timeout=20)
        assert (other.returncode, err) == (1, "the segment was cut short\n")
    for ask in (reader.newest, lambda: reader.closed):
        with pytest.raises(DiinnError, match="was cut short: start its writer again"):
            ask()
    segment(name).unlink()  # the writer's own map is cut, too: it is left as it is


@pytest.mark.parametrize("theirs", [b"", b"\0" * 8192, bytes(range(256)) * 32])
def test_what_another_program_holds_is_left_alone(name: str, theirs: bytes) -> None:
    segment(name).write_bytes(theirs)
    try:
        with pytest.raises(InputError, match=f"shm://{name} is another program's: choose another name"):
            SharedWriter(name, "a", "b")
        assert segment(name).read_bytes() == theirs
    finally:
        segment(name).unlink()


@pytest.mark.parametrize("bad", ["", "a/b", ".hidden", "x" * 300, "a\0b"])
def test_names_no_segment_can_have(bad: str) -> None:
    with pytest.raises(InputError, match=r"is no name for shared memory|give a name of at most 200"):
        segment(bad)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here: apt-get install gcc")
def test_a_program_in_c_reads_what_diinn_run_writes(name: str, bundle_path: Path, tmp_path: Path) -> None:
    source = ROOT / "runtime" / "examples" / "read_frames.c"
    reader = tmp_path / "read_frames"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", reader, source], check=True)
    writing = subprocess.Popen(
        [*COMMAND, "--model", str(bundle_path), "--out-size", "128x96", "--output", f"shm://{name}"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: segment(name).exists() and segment(name).stat().st_size > 4096)
    until(lambda: subprocess.run([reader, name, "1"], capture_output=True, check=False).returncode == 0)
    done = subprocess.run([reader, name, "8"], capture_output=True, text=True, check=True, timeout=30)
    mine = SharedReader(name)
    frame = mine.newest()
    assert frame is not None
    assert frame.image.shape == (96, 128, 3)
    del frame
    mine.close()
    writing.terminate()
    writing.communicate(timeout=20)
    lines = [re.fullmatch(r"(\d+) 128x96 sequence (\d+) captured ([\d.]+) age ([\d.]+) ms mean ([\d.]+)", line)
             for line in done.stdout.splitlines()]  # fmt: skip
    assert len(lines) == 8
    assert all(lines)
    numbers = [int(line.group(1)) for line in lines if line]
    assert numbers == sorted(set(numbers))
    assert all(abs(float(line.group(3)) - time.time()) < 60 for line in lines if line)
    assert all(40 < float(line.group(5)) < 220 for line in lines if line)


def test_raw_frames_through_a_pipe(bundle_path: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.jsonl"
    done = subprocess.run(
        [*COMMAND, "--model", str(bundle_path), "--out-size", "128x96", "--max-frames", "6", "--output", "-",
         "--output", "none", "--stats", str(stats)],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, 96, 128, 3)
    assert 1 <= len(frames) <= 6
    assert 40 < frames.mean() < 220
    assert b"raw frames on standard output: BGR, 128x96, 36864 bytes each" in done.stderr
    assert b"demo: 64x48 -> 128x96" in done.stderr  # what is for people goes elsewhere
    assert stats.read_text().count('"type": "summary"') == 1


def test_a_reader_that_goes_away_ends_the_run(bundle_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--model", str(bundle_path), "--output", "-"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.read(1000)
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_burnt_numbers_survive_scaling() -> None:
    for number in (0, 1, 777, 65535):
        assert burnt(np.asarray(picture(number, (160, 120)))) == number
