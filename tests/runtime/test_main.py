"""``diinn-run`` end to end, in a process where signals and exit codes matter."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from diinn.runtime import SuperResolver, demo, main, sources
from diinn.runtime.sinks.files import VideoFile
from diinn.runtime.stream.result import WHOLE, Result
from diinn.runtime.view import View


@pytest.fixture
def run(bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Calls main; returns (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DISPLAY", raising=False)

    def call(*args: object, model: object = bundle_path) -> tuple[int, str, str]:
        try:
            code = main.main([*map(str, args), "--model", str(model)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return call


def video(path: Path, frames: int, rate: float = 12.5) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, (32, 24))
    for i in range(frames):
        writer.write(demo.frame(i / 10, (32, 24)))
    writer.release()
    return path


def summary(path: Path) -> dict:
    """The last line of --stats."""
    found = json.loads(path.read_text().splitlines()[-1])
    assert found["type"] == "summary"
    return found


def count_frames(path: Path) -> tuple[int, float, tuple[int, int]]:
    capture = cv2.VideoCapture(str(path))
    count = 0
    shape = (0, 0)
    while True:
        done, image = capture.read()
        if not done:
            return count, capture.get(cv2.CAP_PROP_FPS), shape
        count, shape = count + 1, (image.shape[1], image.shape[0])


def test_an_image(run, bundle_path: Path, photo_path: Path, photo: np.ndarray) -> None:
    code, out, err = run("--input", photo_path, "--out-size", "163x99", "--output", "big.png")
    assert (code, err) == (0, "")
    assert "photo.png: 80x60 -> 163x99 (scale 2.04 by 1.65), model tiny, onnxruntime" in out
    with SuperResolver.open(bundle_path) as resolver:
        np.testing.assert_array_equal(cv2.imread("big.png"), resolver.resize(photo, (163, 99)))


def test_a_result_that_goes_nowhere_is_said(run, photo_path: Path) -> None:
    code, out, _ = run("--input", photo_path)
    assert code == 0
    assert "nothing was shown or saved" in out
    assert "1 frame, frame age" in out


def test_16_bits_and_transparency_are_said(run, photo: np.ndarray) -> None:
    cv2.imwrite("deep.png", photo.astype(np.uint16) * 257)
    cv2.imwrite("alpha.png", np.dstack([photo, photo[..., 0]]))
    assert "16 bits become 8" in run("--input", "deep.png")[2]
    assert "transparency is dropped" in run("--input", "alpha.png")[2]


def test_scale_and_roi(run, photo_path: Path) -> None:
    assert run("--input", photo_path, "--scale", "2.5", "--output", "a.png")[0] == 0
    assert cv2.imread("a.png").shape == (150, 200, 3)
    code, out, _ = run("--input", photo_path, "--scale", "3", "--roi", "10.5,20,30,20.25", "--output", "b.png")
    assert code == 0
    assert "ROI 10.5,20,30,20.25 -> 90x61 (scale 3" in out
    assert cv2.imread("b.png").shape == (61, 90, 3)


def test_a_folder_keeps_names_and_goes_on_after_a_bad_image(run, photo: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    cv2.imwrite("in/a.png", photo)
    cv2.imwrite("in/sub/b.jpg", photo[:30])
    Path("in/broken.png").write_bytes(b"nothing")
    code, _, err = run("--input", "in", "--scale", "2", "--output", "out", "--stats", "s.json")
    assert code == 1
    assert "broken.png' is not an image" in err
    assert "1 of 3 images could not be read" in err
    assert cv2.imread("out/a.png").shape == (120, 160, 3)
    assert cv2.imread("out/sub/b.jpg").shape == (60, 160, 3)
    assert summary(Path("s.json"))["processed"] == 2
    assert sorted(p.name for p in Path("out").rglob("*.*")) == ["a.png", "b.jpg"]


def test_a_glob(run, photo: np.ndarray, tmp_path: Path) -> None:
    for name in ("x1.png", "x2.png", "y.png"):
        cv2.imwrite(name, photo[:8, :8])
    assert run("--input", "x*.png", "--output", "out")[0] == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["x1.png", "x2.png"]


def test_a_video_keeps_its_frames_and_rate(run, tmp_path: Path) -> None:
    video(tmp_path / "clip.avi", 7)
    code, out, _ = run("--input", "clip.avi", "--out-size", "64x48", "--output", "big.avi")
    assert code == 0
    assert "audio, if there is any, is dropped" in out
    assert count_frames(Path("big.avi")) == (7, 12.5, (64, 48))
    assert not list(tmp_path.glob(".*"))


def test_a_video_loops(run, tmp_path: Path) -> None:
    video(tmp_path / "clip.avi", 3)
    code, out, _ = run("--input", "clip.avi", "--loop", "--max-frames", "8", "--output", "none")
    assert code == 0
    assert "8 frames" in out


def test_the_demo_camera_to_a_video_whose_time_is_time(run) -> None:
    code, out, err = run(
        "--camera", "demo", "--input-size", "64x48", "--out-size", "128x96", "--output", "d.mp4", "--duration", "1.5"
    )
    assert (code, err) == (0, "")
    assert "demo: 64x48 -> 128x96 (scale 2)" in out
    frames, rate, size = count_frames(Path("d.mp4"))
    assert rate == 30
    assert size == (128, 96)
    assert 10 <= frames <= 60  # the machine may be busy


def test_two_inputs_of_one_name_stay_apart(run, photo: np.ndarray) -> None:
    for folder in "ab":
        Path(folder).mkdir()
        cv2.imwrite(f"{folder}/x.png", photo[:8, :8])
    assert run("--input", "a/x.png", "--input", "b/x.png", "--output", "out")[0] == 0
    assert len([p for p in Path("out").rglob("*") if p.is_file()]) == 2


def test_a_video_into_a_folder_keeps_its_name(run, tmp_path: Path) -> None:
    video(tmp_path / "clip.avi", 3)
    assert run("--input", "clip.avi", "--output", "out")[0] == 0
    assert count_frames(Path("out/clip.avi"))[0] == 3


def result(image: np.ndarray, sequence: int, arrived: float) -> Result:
    frame = sources.Frame(image, "cam", sequence, 0.0, arrived)
    return Result(image, "cam", "full", frame, WHOLE, View.resize((image.shape[1], image.shape[0])), arrived)


def test_a_video_fills_what_a_live_camera_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = VideoFile(tmp_path / "v.avi", lambda: 10.0, live=True)
    image = demo.frame(0, (16, 12))
    for sequence, arrived in enumerate((5.0, 5.04, 5.1, 6.0)):  # the second comes too early for 10 frames a second
        sink.write(result(image, sequence, arrived))
    sink.write(result(image[:6], 9, 6.1))
    sink.write(result(image[:6], 10, 6.2))
    sink.close()
    assert count_frames(tmp_path / "v.avi") == (13, 10.0, (16, 12))
    assert caplog.text.count("cam changed its size to 16x6: fitted to the 16x12") == 1


def test_a_camera_that_was_gone_leaves_a_short_gap(tmp_path: Path) -> None:
    sink = VideoFile(tmp_path / "v.avi", lambda: 10.0, live=True)
    image = demo.frame(0, (16, 12))
    for sequence, arrived in enumerate((5.0, 5.1, 50_000.0, 50_000.1)):  # a night without it
        sink.write(result(image, sequence, arrived))
    sink.close()
    assert 300 <= count_frames(tmp_path / "v.avi")[0] <= 310


def test_names_that_look_alike_as_files_stay_apart(run) -> None:
    Path("c.yaml").write_text(
        "cameras:\n  - {uri: demo, name: a/b, size: 32x24}\n  - {uri: demo, name: a_b, size: 32x24}\n"
    )
    assert run("--cameras", "c.yaml", "--duration", "5", "--output", "out")[0] == 0
    assert sorted(p.name for p in Path("out").iterdir()) == ["a_b-2.mp4", "a_b.mp4"]


def test_several_cameras_go_to_a_folder(run) -> None:
    code, out, _ = run(
        *("--camera", "demo", "--camera", "demo", "--input-size", "32x24", "--duration", "5", "--output", "out")
    )
    assert code == 0
    assert "demo-2: 32x24" in out
    assert sorted(p.name for p in Path("out").iterdir()) == ["demo-2.mp4", "demo.mp4"]


def test_benchmark_prints_stages_and_stats(run) -> None:
    args = ("--camera", "demo", "--input-size", "32x24", "--benchmark", "--max-frames", "5", "--stats", "s.json")
    code, out, _ = run(*args)
    assert code == 0
    for stage in ("age", "encode", "decode", "total", "sink"):
        assert f"  {stage:7} median" in out
    stats = summary(Path("s.json"))
    assert stats["processed"] == stats["captured"] == 5
    assert stats["dropped"] == 0
    assert stats["ms"]["total"]["p50"] > 0


def test_statistics_are_a_line_a_second_and_a_summary(run) -> None:
    args = ("--camera", "demo", "--camera", "demo", "--input-size", "32x24", "--duration", "3.6", "--output", "none")
    code, _, _ = run(*args, "--stats", "s.jsonl")
    assert code == 0
    lines = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert [line["type"] for line in lines][-4:] == ["second", "second", "second", "summary"]
    times = [line["seconds"] for line in lines[:-1]]
    assert all(0.7 < b - a < 1.3 for a, b in pairwise(times))
    for name in ("demo", "demo-2"):
        camera = lines[-1]["cameras"][name]
        assert camera["state"] == "live"
        assert camera["captured"] == camera["processed"] + camera["dropped"]
        assert 0 < camera["age_ms"]["p50"] <= camera["age_ms"]["p99"]
        assert camera["fps"] > 0
    assert lines[-1]["memory_mib"] > 20
    assert lines[-1]["workers_mib"] > 20
    code, out, err = run(*args[:-4], "--max-frames", "3", "--output", "none", "--stats", "-")
    assert code == 0
    assert [json.loads(line)["type"] for line in out.splitlines()][-1] == "summary"
    assert ": 32x24 -> 64x48" in err  # what is for people goes elsewhere


def test_views_and_outputs_of_several_kinds(run, tmp_path: Path) -> None:
    views = ("--view", "whole=full:64x48", "--view", "part=roi:4,4,16,12:64x48", "--view", "virtual:5,0,40:32x24")
    code, out, err = run(
        *("--camera", "demo", "--input-size", "32x24", "--duration", "3", *views),
        *("--output", "out", "--output", "none", "--output", "http://127.0.0.1:0"),
    )
    assert (code, err) == (0, "")
    assert "demo part: 32x24 ROI 4,4,16,12 -> 64x48 (scale 4)" in out
    assert re.search(r"open http://127.0.0.1:\d+/ in a browser", out)
    assert sorted(p.name for p in Path("out").iterdir()) == ["demo-part.mp4", "demo-virtual.mp4", "demo-whole.mp4"]
    assert count_frames(Path("out/demo-virtual.mp4"))[2] == (32, 24)


def test_an_image_of_each_frame(run, photo: np.ndarray) -> None:
    before = time.time()
    args = ("--camera", "demo", "--camera", "demo", "--input-size", "32x24", "--duration", "3", "--output", "out/*.png")
    assert run(*args)[0] == 0
    for name in ("demo", "demo-2"):
        times = [float(p.stem) for p in Path("out", name).glob("*.png")]
        assert len(times) > 1
        assert before < min(times) < max(times) < time.time()
    video(Path("clip.avi"), 3)
    assert run("--input", "clip.avi", "--output", "film/*.jpg")[0] == 0
    assert sorted(p.name for p in Path("film").iterdir()) == ["000000.jpg", "000001.jpg", "000002.jpg"]
    Path("stills").mkdir()
    cv2.imwrite("stills/a.bmp", photo[:8, :8])
    assert run("--input", "stills", "--output", "big/*.webp")[0] == 0
    assert [p.name for p in Path("big").iterdir()] == ["a.webp"]
    code, _, err = run("--input", "stills", "--output", "stills/*.bmp")
    assert (code, "would replace the input" in err) == (2, True)


def test_a_file_of_cameras(run) -> None:
    Path("cameras.yaml").write_text(
        "cameras:\n  - {uri: demo, name: front, size: 32x24, views: {a: 'full:64x48'}}\n"
        "  - {uri: demo, size: 48x32, max_fps: 5}\n"
    )
    code, out, _ = run("--cameras", "cameras.yaml", "--scale", "3", "--duration", "2", "--output", "out")
    assert code == 0
    assert "front: 32x24 -> 64x48" in out
    assert "demo: 48x32 -> 144x96" in out
    assert sorted(p.name for p in Path("out").iterdir()) == ["demo.mp4", "front.mp4"]


def test_a_port_in_use_is_said(run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, err = run("--camera", "demo", "--output", f"http://127.0.0.1:{port}")
    assert code == 2
    assert f"cannot listen on http://127.0.0.1:{port}" in err
    assert "choose another port" in err


def test_several_views_of_images_go_to_folders(run, photo: np.ndarray) -> None:
    Path("in").mkdir()
    for name in "ab":
        cv2.imwrite(f"in/{name}.png", photo)
    views = ("--view", "big=full:160x120", "--view", "part=roi:0,0,40,30:80x60")
    assert run("--input", "in", *views, "--output", "out")[0] == 0
    assert sorted(str(p.relative_to("out")) for p in Path("out").rglob("*.png")) == [
        *("in-big/a.png", "in-big/b.png", "in-part/a.png", "in-part/b.png")
    ]
    assert cv2.imread("out/in-part/b.png").shape == (60, 80, 3)


def test_list_devices(run) -> None:
    code, out, _ = run("--list-devices")
    assert code == 0
    assert out.splitlines()[-1] == "demo: a synthetic camera"


def test_list_models_and_version(run) -> None:
    code, out, _ = run("--list-models")
    assert code == 0
    assert [line.partition(":")[0] for line in out.splitlines()] == ["nano", "small"]
    assert run("--version")[1].startswith("diinn 0.")


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
        "--decoder fused is --backend cuda, not tensorrt: leave out one of them",
    ),
    "no gpu": (["--camera", "demo", "--decoder", "fused"], "no CUDA here"),
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
    "whose calibration": (["--camera", "demo", "--view", "rectify:64x48"], "a rectified view wants a calibration"),
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
    "stats": (["--input", "photo.png", "--stats", "none/s.json"], "cannot write --stats"),
    "damaged png": (["--input", "badcrc.png"], "'badcrc.png' is cut short or damaged"),
    "cut video": (["--input", "cut.avi", "--output", "x.avi"], "of 60 frames: it is cut short"),
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
    "empty input": (["--input", ""], "--input is empty"),
    "empty output": (["--input", "photo.png", "--output", ""], "--output is empty"),
    "too many threads": (["--camera", "demo", "--threads", "99999"], "more threads than 1024"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    run, photo_path: Path, photo: np.ndarray, tmp_path: Path, case: str
) -> None:
    Path("empty.jpg").touch()
    Path("empty.mp4").touch()
    Path("emptydir").mkdir()
    Path("text.png").write_text("hello")
    Path("text.mp4").write_text("hello")
    Path("cut.jpg").write_bytes(cv2.imencode(".jpg", photo)[1].tobytes()[:-900])
    Path("cut.png").write_bytes(cv2.imencode(".png", photo)[1].tobytes()[:-900])
    Path("badcrc.png").write_bytes(cv2.imencode(".png", photo)[1].tobytes().replace(b"IDAT", b"IDAT\0", 1))
    Path("two").mkdir()
    for name in "ab":
        cv2.imwrite(f"two/{name}.png", photo)
    whole = video(tmp_path / "clip.avi", 60).read_bytes()
    Path("cut.avi").write_bytes(whole[: len(whole) // 2])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    args, word = BAD[case]
    code, _, err = run(*args)
    assert err.startswith("diinn-run: ")
    assert word in err
    assert len([line for line in err.splitlines() if "was trained for" not in line]) == 1  # a warning, not an error
    assert code == 2
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_unknown_and_broken_models(run, photo_path: Path, tmp_path: Path) -> None:
    assert "unknown model 'smal': did you mean 'small'" in run("--input", photo_path, model="smal")[2]
    assert "is not a bundle" in run("--input", photo_path, model=tmp_path)[2]


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
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up(run, photo_path: Path, tiny_disk: Path) -> None:
    for args in (
        ("--input", photo_path, "--out-size", "300x225", "--output", tiny_disk / "x.bmp"),
        ("--camera", "demo", "--max-frames", "3", "--output", tiny_disk / "x.mp4"),
    ):
        code, _, err = run(*args)
        assert code == 1
        assert err.count("\n") == 1
        assert "No space left" in err or "is full" in err
        assert list(tiny_disk.iterdir()) == []


def test_an_output_folder_that_cannot_be_written(run, photo_path: Path) -> None:
    code, _, err = run("--input", photo_path, "--output", "/proc/none/x.png")
    assert code == 2
    assert "/proc/none" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_file(bundle_path: Path, tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "live.mp4"
    command = [sys.executable, "-m", "diinn.runtime.main", "--camera", "demo", "--input-size", "32x24"]
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
