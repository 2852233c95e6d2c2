"""``diinn-run`` end to end, in a process where signals and exit codes matter."""

import json
import re
import socket
import time
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from diinn.runtime import SuperResolver, sources
from diinn.runtime.geometry.view import View
from diinn.runtime.sinks.files import VideoFile
from diinn.runtime.sources import demo
from diinn.runtime.stream.result import WHOLE, Result
from streamed import count_frames, video


def summary(path: Path) -> dict:
    """The last line of --stats."""
    found = json.loads(path.read_text().splitlines()[-1])
    assert found["type"] == "summary"
    return found


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
