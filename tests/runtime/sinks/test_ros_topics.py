"""Topics of ROS 2 as outputs: real subscribers over Fast DDS, in processes of their own, on the loopback."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rosbus
from diinn.runtime import Calibration, CameraSettings, Result, Stream, View, ViewSpec
from diinn.runtime.geometry.view_camera import of_view
from diinn.runtime.sinks.ros_topic import RosTopics
from diinn.runtime.sources.base import Frame
from diinn.runtime.stream.result import WHOLE
from diinn.runtime.stream.settings import open_sources
from rosbus import publisher, subscriber

SIZE = (160, 120)
K = [150.0, 0.0, 79.0, 0.0, 152.0, 61.0, 0.0, 0.0, 1.0]
INFO = {"k": K, "d": [-0.2, 0.05, 0.0, 0.0, 0.0], "p": [*K[:3], 0.0, *K[3:6], 0.0, *K[6:], 0.0]}
pytestmark = pytest.mark.usefixtures("bus")


@contextlib.contextmanager
def running(tmp_path: Path, *words: str) -> Iterator[Path]:
    """``diinn-run`` in a process of its own; gives the file of its statistics."""
    stats = tmp_path / "stats.jsonl"
    command = [sys.executable, "-m", "diinn.runtime.cli.run", "--model", "nano", "--stats", str(stats), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield stats
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(30)


def latest(stats: Path) -> dict[str, Any]:
    lines = [line for line in stats.read_text().splitlines() if line.endswith("}")] if stats.exists() else []
    return json.loads(lines[-1]) if lines else {}


def eventually(condition: Callable[[], object], seconds: float = 90.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def lines(process: rosbus.Process, count: int) -> list[dict[str, Any]]:
    assert process.line() == {"ready": True}
    return [process.line() for _ in range(count)]


def test_a_view_bears_the_stamp_and_frame_of_its_image(tmp_path: Path) -> None:
    words = ("--camera", "ros2:///front/image_raw", "--out-size", "320x240", "--output", "ros2:///front/sr")
    with (
        publisher("/front/image_raw", report=True, info=INFO, rate=10) as sender,
        running(tmp_path, *words),
        subscriber("/front/sr/image") as images,
        subscriber("/front/sr/camera_info", "CameraInfo") as infos,
    ):
        pictures, cameras = lines(images, 6), lines(infos, 6)
        sent = {line["stamp"]: line["number"] for line in sender.end() if "stamp" in line}
    for picture in pictures:
        assert (picture["size"], picture["encoding"], picture["frame_id"]) == ([320, 240], "bgr8", "front_optical")
        assert sent[picture["stamp"]] % 64 == picture["number"]
    for camera in cameras:
        assert camera["stamp"] in sent
        assert (camera["size"], camera["frame_id"]) == ([320, 240], "front_optical")
        np.testing.assert_allclose(camera["k"], [300, 0, 158.5, 0, 304, 122.5, 0, 0, 1])
    assert {picture["stamp"] for picture in pictures} & {camera["stamp"] for camera in cameras}


VIEWS = {"plate": "roi:40,30,80,60:320x240", "flat": "rectify:160x120", "side": "virtual:20,-5,50:160x120"}


def test_each_views_camera_info_fits_it(tmp_path: Path) -> None:
    words = [word for name, view in VIEWS.items() for word in ("--view", f"{name}={view}")]
    calibration = Calibration.of_message("info", {"width": 160, "height": 120, "distortion_model": "plumb_bob", **INFO})
    with (
        publisher("/front/image_raw", info=INFO, rate=5),
        running(tmp_path, "--camera", "ros2:///front/image_raw", *words, "--output", "ros2:///front/sr"),
    ):
        for name, text in VIEWS.items():
            with subscriber(f"/front/sr/{name}/camera_info", "CameraInfo") as infos:
                (info,) = lines(infos, 1)
            expected = of_view(ViewSpec.parse(text).view(SIZE, calibration), SIZE, calibration)
            assert info["size"] == list(expected.size)
            for key in ("k", "d", "r", "p"):
                np.testing.assert_allclose(info[key], getattr(expected, key).ravel(), err_msg=f"{name} {key}")
            assert info["frame_id"] == ("front_optical_side" if name == "side" else "front_optical")


def test_a_compressed_view(tmp_path: Path) -> None:
    words = ("--camera", "demo", "--input-rate", "5", "--out-size", "320x240", "--output", "ros2:///d/sr?format=jpeg")
    with running(tmp_path, *words), subscriber("/d/sr/image/compressed", "CompressedImage") as images:
        for picture in lines(images, 3):
            assert (picture["size"], picture["format"]) == ([320, 240], "bgr8; jpeg compressed bgr8")
            assert picture["frame_id"] == "demo"
            assert abs(picture["at"] - picture["stamp"]) < 30 * 10**9


@pytest.mark.parametrize("offered", ["best_effort", "reliable"])
@pytest.mark.parametrize("asked", ["best_effort", "reliable"])
def test_the_quality_of_service_that_is_asked_for(tmp_path: Path, offered: str, asked: str) -> None:
    """A reliable subscriber hears a reliable publisher alone."""
    output = f"ros2:///q/sr?reliability={offered}"
    with (
        running(tmp_path, "--camera", "demo", "--input-rate", "5", "--scale", "1", "--output", output) as stats,
        subscriber("/q/sr/image", reliability=asked) as images,
    ):
        if (offered, asked) != ("best_effort", "reliable"):
            assert len(lines(images, 2)) == 2
            return
        assert images.line() == {"ready": True}
        eventually(lambda: latest(stats).get("cameras", {}).get("demo", {}).get("unwanted", 0) > 10)
        assert images.end() == []


def test_where_nobody_subscribes_nothing_is_made(tmp_path: Path) -> None:
    """Neither encoded nor decoded; and of two views the one that is subscribed to alone."""
    words = ("--view", "a=full:160x120", "--view", "b=full:320x240", "--output", "ros2:///lazy/sr")
    with running(tmp_path, "--camera", "demo", "--input-rate", "10", *words) as stats:
        eventually(lambda: latest(stats) and latest(stats)["cameras"]["demo"]["unwanted"] > 15)
        found = latest(stats)
        assert found["processed"] == 0
        assert found["ms"].get("encode", {"p50": 0})["p50"] == 0
        assert found["outputs"][0]["subscribers"] == {"demo/a": 0, "demo/b": 0}
        with subscriber("/lazy/sr/b/image") as images:
            assert all(picture["size"] == [320, 240] for picture in lines(images, 3))
            eventually(lambda: latest(stats)["processed"] > 3)
            found = latest(stats)
            assert found["outputs"][0]["subscribers"] == {"demo/a": 0, "demo/b": 1}
            # b alone; a frame is counted after its views
            assert found["outputs"][0]["written"] <= found["processed"] + 1
            images.end()
        eventually(lambda: latest(stats)["outputs"][0]["subscribers"] == {"demo/a": 0, "demo/b": 0})
        before = latest(stats)["cameras"]["demo"]["unwanted"]
        eventually(lambda: latest(stats)["cameras"]["demo"]["unwanted"] > before + 10)


def test_a_subscriber_that_goes_away_holds_up_nobody(tmp_path: Path) -> None:
    words = ("--camera", "demo", "--input-rate", "10", "--scale", "1", "--output", "ros2:///g/sr?reliability=reliable")
    with running(tmp_path, *words) as stats, subscriber("/g/sr/image", reliability="reliable") as stays:
        lines(stays, 2)
        with subscriber("/g/sr/image", reliability="reliable") as goes:
            lines(goes, 2)
            goes.end()
        assert len([stays.line() for _ in range(30)]) == 30
        assert latest(stats)["outputs"][0]["failure"] == ""


def test_an_output_that_is_its_own_input_is_a_loop(run) -> None:
    for camera, output, loop in (
        ("/x/image", "/x", "/x/image"),
        ("/x/image/compressed", "/x?format=jpeg", "/x/image/compressed"),
        ("/x/image_raw", "/x", "/x/camera_info"),  # its calibration would be that of the result
    ):
        code, _, err = run("--camera", f"ros2://{camera}", "--output", f"ros2://{output}", model="nano")
        assert code == 2
        assert f"would publish {loop}, its own input: a loop" in err


REFUSED = {
    "ros2://": "'' is no name of a topic",
    "ros2:///a-b": "'/a-b' is no name of a topic",
    "ros2:///a?format=bmp": "unknown format 'bmp': choose one of jpeg, png, raw",
    "ros2:///a?reliability=always": "unknown reliability 'always'",
    "ros2:///a?quality=0": "quality '0' is not a whole number from 1 to 100",
    "ros2:///a?copy=all": "unknown option 'copy'",
    "ros2:/a": "write ros2:// with two slashes",
}


@pytest.mark.parametrize("output", REFUSED)
def test_what_is_no_topic(run, output: str) -> None:
    code, _, err = run("--camera", "demo", "--output", output, model="nano")
    assert code == 2
    assert REFUSED[output] in err
    assert err.count("\n") == 1


def test_two_outputs_on_one_topic(run) -> None:
    outputs = ("--output", "ros2:///a/sr", "--output", "ros2:///a/sr?format=jpeg")
    code, _, err = run("--camera", "demo", *outputs, model="nano")
    assert code == 2
    assert "two outputs publish /a/sr/camera_info" in err


def test_a_subscriber_that_requests_more_than_is_offered_is_named(caplog: pytest.LogCaptureFixture) -> None:
    (source,) = open_sources([CameraSettings("demo", views={"v": "full:160x120"})])
    sink = RosTopics("/qos/sr", [(source, ["v"])])
    with subscriber("/qos/sr/image", reliability="reliable"):
        eventually(lambda: not sink.wanted("demo", "v") and caplog.messages)
    assert "/qos/sr/image: subscriber" in caplog.messages[0]
    assert "add ?reliability=reliable to the output" in caplog.messages[0]
    sink.close()


def test_views_that_change_while_they_are_written() -> None:
    """What a writer holds is not destroyed under it."""
    (source,) = open_sources([CameraSettings("demo", views={"v": "full:160x120"})])
    sink = RosTopics("/race/sr?format=png", [(source, ["v", "w"])])
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    frame = Frame(image, "demo", 0, time.time(), time.monotonic(), None)
    stop, failures = threading.Event(), []

    def write() -> None:
        try:
            while not stop.is_set():
                sink.write(Result(image, "demo", "v", frame, WHOLE, View.resize((640, 480)), time.monotonic()))
                sink.wanted("demo", "v")
                sink.statistics()
        except Exception as error:  # of the middleware, in a thread
            failures.append(error)

    with subscriber("/race/sr/v/image/compressed", "CompressedImage"):
        eventually(lambda: sink.wanted("demo", "v"))
        writer = threading.Thread(target=write)
        writer.start()
        for n in range(40):
            sink.offer([(source, ["v", "w"] if n % 2 else ["x"])])
            time.sleep(0.02)
        stop.set()
        writer.join()
    sink.close()
    assert failures == []


def test_a_bag_in_and_a_topic_out(tmp_path: Path) -> None:
    import bagged

    bag = bagged.write(tmp_path / "drive.mcap", bagged.drive(300))
    with subscriber("/front/sr/image") as images:
        assert images.line() == {"ready": True}
        words = ("--input", str(bag), "--scale", "1", "--output", "ros2:///front/sr")
        with running(tmp_path, *words):
            found = [images.line() for _ in range(3)]
    for picture in found:
        assert picture["stamp"] == bagged.stamp(picture["number"])


def test_views_that_change_while_it_runs(bundle_path: Path) -> None:
    """In Python: a view that is set anew keeps its topic, its camera_info is that of the new one."""
    settings = [CameraSettings("demo", views={"v": "full:160x120"})]
    sources = open_sources(settings)
    sink = RosTopics("/set/sr", [(sources[0], ["v"])])
    stream = Stream(settings, str(bundle_path), sinks=[sink], sources=sources)
    with subscriber("/set/sr/camera_info", "CameraInfo") as infos, stream:
        stream.start()
        assert infos.line() == {"ready": True}
        assert infos.line()["size"] == [160, 120]
        stream.set_views("demo", {"v": "full:200x150"})
        eventually(lambda: infos.line()["size"] == [200, 150])


def test_transforms_are_those_of_the_views() -> None:
    """The message itself; that it reaches subscribers is shown in ``test_ros2.py``."""
    from diinn.runtime.geometry.calibration import turned
    from diinn.runtime.sinks.ros_topic import transform

    made = transform(5_000_000_007, "front_optical", "front_optical_side", turned(90, 0))
    assert (made.header.frame_id, made.child_frame_id) == ("front_optical", "front_optical_side")
    assert (made.header.stamp.sec, made.header.stamp.nanosec) == (5, 7)
    q = made.transform.rotation
    axis = np.array([q.x, q.y, q.z])
    ahead = np.array([0.0, 0, 1])
    seen = ahead + 2 * np.cross(axis, np.cross(axis, ahead) + q.w * ahead)
    np.testing.assert_allclose(seen, [1, 0, 0], atol=1e-12)  # the view looks to the camera's right


def test_the_age_of_a_frame_counts_from_its_stamp(tmp_path: Path) -> None:
    """A publisher whose images are two seconds old when they are sent."""
    words = ("--camera", "ros2:///old/image", "--scale", "1", "--output", "none")
    with publisher("/old/image", ahead=-2 * 10**9, rate=5), running(tmp_path, *words) as stats:
        eventually(lambda: latest(stats).get("cameras", {}).get("/old/image", {}).get("processed", 0) > 4)
        assert latest(stats)["cameras"]["/old/image"]["age_ms"]["p50"] > 2000
        assert latest(stats)["outputs"][0]["written"] > 3  # they are not dropped for it


def test_a_preview_and_shared_memory_beside_it(tmp_path: Path) -> None:
    from diinn.runtime import SharedReader

    name = f"rostest{os.getpid()}"
    words = ("--camera", "ros2:///p/image", "--scale", "1", "--output", f"shm://{name}", "--output", "ros2:///p/sr")
    with publisher("/p/image", rate=5, report=True) as sender, running(tmp_path, *words) as stats:
        eventually(lambda: latest(stats).get("processed", 0) > 2)  # for the shared memory alone
        reader = SharedReader(name)
        frame = reader.newest(0)
        assert frame is not None
        stamp = round(frame.captured * 1e9)
        reader.close()
        assert min(abs(line["stamp"] - stamp) for line in sender.end() if "stamp" in line) < 2000
