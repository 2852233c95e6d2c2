"""``diinn-run`` where it cannot do what it is asked: bad input, broken models, full disks, signals."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from diinn.runtime.cli import run as command
from diinn.runtime.errors import InputError
from diinn.runtime.sinks.files import check_disk
from diinn.runtime.sources.files import DemoFile
from diinn.runtime.sources.uri import has_gstreamer
from streamed import count_frames

BAD = {
    "no input": ([], "no input"),
    "size 640": (["--camera", "demo", "--out-size", "640"], "'640' is not WIDTHxHEIGHT"),
    "size 640x": (["--camera", "demo", "--out-size", "640x"], "'640x'"),
    "size axb": (["--camera", "demo", "--out-size", "axb"], "'axb'"),
    "size 0": (["--camera", "demo", "--out-size", "0x480"], "0x480"),
    "size negative": (["--camera", "demo", "--out-size", "-5x480"], "--out-size"),
    "size huge": (["--camera", "demo", "--out-size", "1000000x1000000"], "needs 2794.0 GiB"),
    "size absurd": (["--camera", "demo", "--out-size", "9" * 40 + "x1"], "is too large a size"),
    "scale 0": (["--camera", "demo", "--scale", "0"], "'0' is not a scale"),
    "scale negative": (["--camera", "demo", "--scale=-2"], "'-2' is not a scale"),
    "scale nan": (["--camera", "demo", "--scale", "nan"], "'nan' is not a scale"),
    "scale inf": (["--camera", "demo", "--scale", "inf"], "'inf' is not a scale"),
    "scale word": (["--camera", "demo", "--scale", "two"], "'two' is not a scale"),
    "scale and size": (["--camera", "demo", "--scale", "2", "--out-size", "8x8"], "not allowed with"),
    "roi outside": (["--camera", "demo", "--roi", "150,0,20,20"], "not inside the 160x120 frame"),
    "roi words": (["--camera", "demo", "--roi", "1,2,3"], "'1,2,3' is not 4 numbers, write 40,30,80,60"),
    "backend": (["--camera", "demo", "--backend", "tensorflow"], "unknown backend 'tensorflow'"),
    "decoder and backend": (
        ["--camera", "demo", "--decoder", "fused", "--backend", "tensorrt"],
        "backend tensorrt has no fused decoder, only cuda or onnxruntime: leave out one of them",
    ),
    "no gpu": (["--camera", "demo", "--backend", "cuda", "--decoder", "fused"], "no NVIDIA driver here"),
    "no engine": (["--camera", "demo", "--decoder", "engine"], "no NVIDIA driver here"),
    "decoder on a provider": (
        ["--camera", "demo", "--decoder", "fused", "--backend", "onnxruntime", "--precision", "int8"],
        "has no int8 graphs",
    ),
    "provider": (["--camera", "demo", "--provider", "cpuu"], "unknown provider 'cpuu': did you mean 'cpu'"),
    "threads": (["--camera", "demo", "--threads", "0"], "'0' is not a whole number"),
    "duration": (["--camera", "demo", "--duration", "-1"], "--duration"),
    "scheme": (["--camera", "rtps://host/x"], "unknown camera scheme 'rtps': did you mean 'rtsp'"),
    "no camera": (["--camera", "99"], "camera 99 cannot be opened, there is no /dev/video99: check that"),
    "no device": (["--camera", "/dev/video99"], "there is no /dev/video99"),
    "given up": (["--camera", "99", "--retries", "1"], "/dev/video99; given up after 2 attempts in a row"),
    "one device twice": (["--camera", "0", "--camera", "v4l2:///dev/video0"], "two cameras are one device"),
    "retries": (["--camera", "demo", "--retries", "-1"], "--retries"),
    "retries often": (["--camera", "demo", "--retries", "often"], "from 0 up nor 'forever'"),
    "option": (["--camera", "demo", "--out-sise", "64x48"], "did you mean --out-size?"),
    "short option": (["--camera", "demo", "--viewer", "3"], "did you mean --view"),
    "not ours": (["--camera", "demo", "--output", "http://10.255.255.1:80"], "or an address of this machine"),
    "no disk": (["--camera", "demo", "--output", "/proc/x.mp4", "--output", "none"], "cannot write to '/proc'"),
    "codec": (["--camera", "demo", "--input-codec", "mjpg"], "unknown codec 'mjpg': did you mean 'mjpeg'"),
    "flip": (["--camera", "demo", "--flip", "horizontl"], "did you mean 'horizontal'"),
    "no gst": (["--camera", "gst://videotestsrc"], "gst:// needs an OpenCV with GStreamer"),
    "view kind": (["--camera", "demo", "--view", "a=ful:640x480"], "unknown kind of view 'ful': did you mean 'full'"),
    "view size": (["--camera", "demo", "--view", "a=full:640"], "'640' is not WIDTHxHEIGHT"),
    "view rect": (["--camera", "demo", "--view", "a=roi:1,2,3:64x48"], "'1,2,3' is not 4 numbers"),
    "view twice": (
        ["--camera", "demo", "--view", "a=full:64x48", "--view", "a=full:32x24"],
        "two views are called 'a'",
    ),
    "view name": (["--camera", "demo", "--view", "~a=full:64x48"], "'~a' is no name for a view"),
    "view and size": (["--camera", "demo", "--view", "full:64x48", "--scale", "2"], "leave out --out-size"),
    "no calibration": (
        ["--camera", "demo", "--view", "rectify:none.yaml:64x48"],
        "cannot read calibration 'none.yaml'",
    ),
    "whose calibration": (["--camera", "demo", "--view", "rectify:64x48"], "a rectified view needs a calibration"),
    "bad calibration": (["--camera", "demo", "--calibration", "text.png"], "'text.png' is no camera calibration"),
    "virtual turned away": (["--camera", "demo", "--view", "virtual:170,0,40:64x48"], "sees nothing of this camera"),
    "no cameras file": (["--cameras", "none.yaml"], "cannot read cameras 'none.yaml'"),
    "cameras without cameras": (["--cameras", "text.png"], "has no cameras"),
    "deadline": (["--camera", "demo", "--deadline-ms", "0"], "'0' is not a number of milliseconds"),
    "max fps": (["--camera", "demo", "--max-fps", "0"], "'0' is not a number of frames a second"),
    "two on stdout": (["--camera", "demo", "--output", "-", "--stats", "-"], "are one standard output"),
    "two in a pipe": (["--camera", "demo", "--camera", "demo", "--output", "-"], "--output - holds one stream"),
    "output twice": (["--camera", "demo", "--output", "a.mp4", "--output", "./a.mp4"], "is given twice"),
    "secret in capitals": (["--input", "RTSP://u:secret@h/x"], "'RTSP://h' is a stream: give it as --camera"),
    "stall for ever": (["--camera", "demo", "--stall-timeout", "1e300"], "'1e300' is not a number of seconds"),
    "view too large": (["--camera", "demo", "--view", "virtual:0,0,60:60000x60000"], "GiB of memory"),
    "shared memory": (["--camera", "demo", "--output", "shm://a/b"], "is no name for shared memory"),
    "preview": (["--camera", "demo", "--output", "http://127.0.0.1:99999"], "is no address for the preview"),
    "preview host": (["--camera", "demo", "--output", "http://256.1.1.1:80"], "write http://127.0.0.1:8080"),
    "shared memory too long": (["--camera", "demo", "--output", "shm://" + 300 * "a"], "is 300 characters long: give"),
    "one slash": (
        ["--camera", "rtsp:/u:secret@host/x"],
        "is neither a number, a device nor a URI: write rtsp:// with two",
    ),
    "output with one slash": (["--camera", "demo", "--output", "shm:/x"], "write shm:// with two slashes, or ./shm:/x"),
    "no pipeline": (["--camera", "demo", "--output", "gst:// "], "gst:// names nothing: write gst://PIPELINE"),
    "two in a pipeline": (
        ["--camera", "demo", "--camera", "demo", "--output", "gst://udpsink host=h port=1"],
        "--output gst://udpsink takes one stream, these are 2: write {stream} or {number}",
    ),
    "images in a pipeline": (
        ["--input", "two", "--output", "gst://x264enc ! fakesink"],
        "images do not go into a pipeline gst://x264enc",
    ),
    "a device as output": (
        ["--camera", "demo", "--output", "/dev/null"],
        "is no folder: give another, or none to write",
    ),
    "a device as image": (["--input", "photo.png", "--output", "text.png/"], "'text.png' is there and is no folder"),
    "nothing behind": (["--camera", "v4l2://"], "camera v4l2:// names nothing: write v4l2:///dev/video0 or"),
    "a long time": (["--camera", "demo", "--duration", "1e300"], "above 0 and up to 100000000"),
    "no csi": (["--camera", "csi://0"], "csi:// needs an OpenCV with GStreamer"),
    "camera is a file": (["--camera", "photo.png"], "for a file use --input photo.png"),
    "missing": (["--input", "none.jpg"], "none.jpg"),
    "empty": (["--input", "empty.jpg"], "'empty.jpg' is empty"),
    "empty video": (["--input", "empty.mp4"], "'empty.mp4' is empty"),
    "empty folder": (["--input", "emptydir"], "no image in folder 'emptydir'"),
    "text as image": (["--input", "text.png"], "'text.png' is not an image"),
    "text as video": (["--input", "text.mp4"], "'text.mp4' is no image or video"),
    "cut jpeg": (["--input", "cut.jpg"], "'cut.jpg' is cut short"),
    "cut png": (["--input", "cut.png"], "'cut.png' is cut short"),
    "output ending": (["--input", "photo.png", "--output", "x.pgn"], "did you mean '.png'"),
    "output scheme": (["--input", "photo.png", "--output", "displya://0"], "did you mean 'display'"),
    "no display": (["--input", "photo.png", "--output", "display://0"], "there is no display here"),
    "video of images": (["--input", "photo.png", "--output", "x.mp4"], "images do not go into a video"),
    "image of video": (["--camera", "demo", "--output", "x.png"], "do not go into one image"),
    "one file for two": (["--camera", "demo", "--camera", "demo", "--output", "x.mp4"], "cannot hold several sources"),
    "output below a file": (["--input", "photo.png", "--output", "photo.png/x.png"], "cannot make folder"),
    "stats": (["--input", "photo.png", "--stats", "none/s.json", "--output", "new/"], "no folder 'none'"),
    "stats folder": (["--input", "photo.png", "--stats", "two", "--output", "new/"], "'two': it is a folder; name a"),
    "damaged png": (["--input", "badcrc.png"], "'badcrc.png' is cut short or damaged"),
    "an image of another kind": (["--input", "p.tga", "--output", "new/"], "cannot read: convert it to PNG"),
    "many into one": (["--input", "two", "--output", "one.png"], "cannot hold several sources, views or images"),
    "onto itself": (["--input", "photo.png", "--output", "photo.png"], "would replace the input"),
    "folder onto itself": (["--input", "two", "--output", "two"], "would replace the input"),
    "video too big": (
        ["--camera", "demo", "--out-size", "9000x600", "--output", "w.mp4"],
        "OpenCV cannot write 9000x600",
    ),
    "roi outside into a folder": (
        ["--input", "photo.png", "--roi", "500,0,2,2", "--output", "new/x.png"],
        "not inside",
    ),
    "roi absurd": (["--camera", "demo", "--roi", "0,0,1e308,1e308", "--scale", "1000"], "not inside the 160x120"),
    "camera absurd": (["--camera", "9" * 11], "is neither a number"),
    "camera two": (["--camera", "\u00b2"], "is neither a number"),
    "demo too large": (["--camera", "demo", "--input-size", "99999x99999"], "has no 99999x99999 frames"),
    "stream as input": (["--input", "rtsp://u:secret@cam/live"], "'rtsp://cam' is a stream: give it as --camera"),
    "secret": (["--camera", "admin:secret@cam/live"], "camera 'cam/live' is neither"),
    "bare file": (["photo.png", "more.png"], "files are given as --input PATH, a glob in quotes"),
    "camera as input": (["--input", "0"], "for a camera use --camera 0"),
    "empty input": (["--input", "file://"], "--input is empty"),
    "empty output": (["--input", "photo.png", "--output", "file://"], "--output is empty"),
    "too many threads": (["--camera", "demo", "--threads", "99999"], "more threads than 1024"),
}


if has_gstreamer():  # what it says there is in test_gstreamer.py
    del BAD["no gst"], BAD["no csi"]


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    run, photo_path: Path, photo: np.ndarray, tmp_path: Path, case: str
) -> None:
    Path("empty.jpg").touch()
    Path("empty.mp4").touch()
    Path("emptydir").mkdir()
    Path("text.png").write_text("hello")
    Path("text.mp4").write_text("hello")
    Path("p.tga").write_bytes(bytes((0, 0, 2, *9 * [0], 4, 0, 4, 0, 24, 0)) + bytes(48))  # uncompressed, 4x4
    Path("cut.jpg").write_bytes(cv2.imencode(".jpg", photo)[1].tobytes()[:-900])
    Path("cut.png").write_bytes(cv2.imencode(".png", photo)[1].tobytes()[:-900])
    Path("badcrc.png").write_bytes(cv2.imencode(".png", photo)[1].tobytes().replace(b"IDAT", b"IDAT\0", 1))
    Path("two").mkdir()
    for name in "ab":
        cv2.imwrite(f"two/{name}.png", photo)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    args, word = BAD[case]
    code, _, err = run(*args)
    # Debian's OpenCV 4.6 now and then lets go of a pipeline too early, which GLib prints.
    err = re.sub(r"\n?\(\w+:\d+\): GStreamer-CRITICAL.*?\n(?=diinn-run: )", "", err, flags=re.DOTALL)
    assert err.startswith("diinn-run: ")
    assert word in err
    assert len([line for line in err.splitlines() if "was trained for" not in line]) == 1  # a warning, not an error
    assert code == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


WORDS = [
    "input",
    "camera",
    "cameras",
    "calibration",
    "provider",
    "stats",
    "output",
    "view",
    "denoise",
    "decoder",
    "model",
]


@pytest.mark.parametrize("option", WORDS)
def test_an_unset_variable_is_said_whatever_it_was_for(run, photo_path: Path, tmp_path: Path, option: str) -> None:
    for words in ([f"--{option}", ""], [f"--{option}="]):
        code, _, err = run("--input", photo_path, "--output", "new/", *words)
        message = f"argument --{option}: an empty word, '': is a variable of your script unset?"
        assert (code, err) == (2, f"diinn-run: {message}\n")
    assert list(tmp_path.iterdir()) == [photo_path]


def test_unknown_and_broken_models(run, photo_path: Path, tmp_path: Path, bundle_path: Path) -> None:
    assert "unknown model 'smal': did you mean 'small'" in run("--input", photo_path, model="smal")[2]
    assert "is not a bundle" in run("--input", photo_path, model=tmp_path)[2]
    part = bundle_path / "encoder.onnx"
    assert f"is a part of a bundle: give its folder, {str(bundle_path)!r}" in run("--input", photo_path, model=part)[2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk(run, photo_path: Path) -> None:
    code, _, err = run("--input", photo_path, "--stats", "/dev/full")
    assert code == 1
    assert "No space left" in err


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("cannot mount a small file system here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up(run, photo_path: Path, tiny_disk: Path) -> None:
    for args in (
        ("--input", photo_path, "--out-size", "300x225", "--output", tiny_disk / "x.bmp"),
        ("--camera", "demo", "--max-frames", "3", "--output", tiny_disk / "x.mp4"),
    ):
        code, _, err = run(*args)
        assert code == 1
        assert err.count("\n") == 1
        assert "No space left" in err or "has less than 16 MiB left" in err
        assert list(tiny_disk.iterdir()) == []


def test_an_output_folder_that_cannot_be_written(run, photo_path: Path) -> None:
    code, _, err = run("--input", photo_path, "--output", "/proc/none/x.png")
    assert code == 2
    assert "/proc/none" in err


def test_an_output_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write to .*, which is gone: choose another --output"):
        check_disk(tmp_path / "gone", "the video", 30)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_file(bundle_path: Path, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "live.mp4"
    command = [sys.executable, "-m", "diinn.runtime.cli.run", "--camera", "demo", "--input-size", "32x24"]
    process = subprocess.Popen(
        [*command, "--model", str(bundle_path), "--output", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert "demo: 32x24" in process.stdout.readline()
    time.sleep(2.0)
    process.send_signal(number)
    printed, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert (err, "frames" in printed) == ("", True)
    assert count_frames(out)[0] > 5
    assert list(tmp_path.iterdir()) == [out]


def test_arguments_at_random_never_crash(run, photo_path: Path, tmp_path: Path) -> None:
    """Any words after any option: exit code 0, 1 or 2 and no traceback."""
    import random

    rng = random.Random(11)
    options = ["--out-size", "--scale", "--roi", "--threads", "--max-frames", "--provider", "--backend", "--output"]
    words = [
        "",
        "0",
        "-1",
        "1e9",
        "nan",
        "640x480",
        "x",
        "1,2,3,4",
        "é",
        "a" * 300,
        "8x8",
        "2.5",
        "none",
        "∞",
        "0x",
        "٣x٣",
    ]
    codes = []
    for _ in range(60):
        args: list[str] = []
        for option in rng.sample(options, 2):
            args += [option, rng.choice(words)]
        code, _, err = run("--input", photo_path, "--max-frames", "1", *args)
        assert code in (0, 1, 2), (args, err)
        assert "Traceback" not in err, (args, err)
        codes.append(code)
    assert 2 in codes


def test_names_cannot_command_the_terminal(run, photo: np.ndarray, tmp_path: Path) -> None:
    """Of files, in what is announced and in what is refused; of cameras, in a file of them."""
    name = "a\x1b[31m\rb\x9b.png"
    cv2.imwrite(name, photo[:8, :8])
    Path(f"bad{name}").write_bytes(b"nothing")
    for args in (["--input", name], ["--input", f"bad{name}"], ["--camera", name], [name], ["--scale", name]):
        _, out, err = run("--output", "none", *args)
        assert "\\x1b[31m" in out + err
        assert not {*"\x1b\r\x9b"} & {*(out + err)}
    Path("cameras.yaml").write_text('cameras:\n  - {uri: demo, name: "\\e]0;title\\a"}\n')
    code, out, err = run("--cameras", "cameras.yaml", "--output", "none")
    assert (code, out) == (2, "")
    assert err == "diinn-run: 'cameras.yaml', line 2, column 23: a control character stands in this text\n"


@pytest.mark.parametrize(
    "option",
    [
        "--model",
        "--stats",
        "--roi",
        "--output",
        "--calibration",
        "--cameras",
        "--scale",
        "--out-size",
        "--view",
        "--flip",
    ],
)
def test_an_address_in_a_wrong_place_does_not_tell_its_password(run, option: str) -> None:
    addresses = ["rtsp://user:secret@10.0.0.7/x", "http://user:se/cr@et@h", "rtsp:/u:secret@h/x"]
    addresses.append(f"rtsp://user:secret{'x' * 400}@h")  # which a message may cut short
    if option not in ("stats", "output"):  # there it is the name of a file
        addresses.append("user:secret@h")
    for address in addresses:
        given = {"model": address} if option == "model" else {}
        words = [] if given else [f"--{option}", address]
        code, out, err = run("--camera", "demo", "--max-frames", "1", *words, **given)
        assert code == 2
        assert err.count("\n") == 1
        assert not [part for part in ("secret", "se/cr", "user:") if part in out + err]


def test_an_unknown_key_that_is_an_address_does_not_tell_its_password(run) -> None:
    Path("cameras.yaml").write_text("cameras:\n  - uri: demo\n    rtsp://user:secret@h/x: front\n")
    code, _, err = run("--cameras", "cameras.yaml")
    assert code == 2
    assert "unknown key 'rtsp://…@h/x'" in err


def test_an_image_larger_than_any_is_not_read(run) -> None:
    Path("large.png").touch()
    os.truncate("large.png", 40 * 2**30)  # takes no room
    begun = time.monotonic()
    code, _, err = run("--input", "large.png")
    assert (code, err) == (2, "diinn-run: 'large.png' is larger than 2 GiB, which no image should be: give another\n")
    assert time.monotonic() - begun < 5


def test_an_empty_word_is_told_from_a_typing_error(run) -> None:
    code, _, err = run("--camera", "demo", "")
    assert (code, err) == (2, "diinn-run: an empty argument, '': is a variable of your script unset?\n")


def test_a_fault_that_nobody_foresaw_is_one_line_and_its_trace_is_for_debugging(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("nobody\nforesaw rtsp://u:secret@h this")

    monkeypatch.setattr(command, "settings", broken)
    code, out, err = run("--camera", "demo")
    assert (code, out) == (1, "")
    assert re.fullmatch(
        r"diinn-run: unexpected ZeroDivisionError at test_refusals\.py:\d+: nobody foresaw rtsp://…@h this; "
        r"--log-level debug shows the trace\n",
        err,
    )
    code, out, err = run("--camera", "demo", "--log-level", "debug")
    assert code == 1
    assert "diinn-run: Traceback (most recent call last):\n" in err
    assert "in broken\n" in err
    assert "secret" not in err


def test_a_fault_in_a_thread_is_one_line_too(run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("nobody foresaw this")

    monkeypatch.setattr(DemoFile, "_read", broken)
    monkeypatch.setattr(command, "STARTING_SECONDS", 0.1)
    code, _, err = run("--camera", "demo", "--benchmark", "--duration", "1")
    assert code == 1
    assert re.search(r"^diinn-run: diinn-demo: unexpected ZeroDivisionError at test_refusals\.py:\d+: nobody", err)
    assert "Traceback" not in err


def test_no_room_for_a_thread_is_said_without_one(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a low ulimit -v; even the line is written by a thread, where one can be."""

    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    code, _, err = run("--camera", "demo")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("diinn-run: cannot start a thread: allow more memory (ulimit -v)")


def test_without_a_home_the_remedy_is_said(tmp_path: Path) -> None:
    code = "import os, sys; from diinn.runtime.cli import doctor; os.setuid(12345); sys.exit(doctor.main(['nano']))"
    if os.getuid():
        pytest.skip("only root can become a user without a home")
    hidden = {"HOME", "DIINN_CACHE", "XDG_CACHE_HOME"}
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "diinn-doctor: no home folder is known here: set DIINN_CACHE to a folder of your own\n"
