"""Topics of ROS 2 as cameras: real publishers over Fast DDS, in processes of their own, on the loopback."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from diinn.benchmarks.mjpeg_server import burnt
from diinn.runtime import InputError
from diinn.runtime.sources import CaptureOptions, Frame, RetryPolicy, Source, open_camera
from diinn.runtime.sources.base import FAILED, LIVE, RETRYING
from rosbus import publisher

K = [150.0, 0.0, 79.0, 0.0, 152.0, 61.0, 0.0, 0.0, 1.0]
INFO = {"k": K, "d": [-0.2, 0.05, 0.0, 0.0, 0.0], "p": [*K[:3], 0.0, *K[3:6], 0.0, *K[6:], 0.0]}
pytestmark = pytest.mark.usefixtures("bus")


@pytest.fixture
def opened() -> Iterator[Callable[..., Source]]:
    """Opens a camera by its URI; closes it at the end."""
    sources: list[Source] = []

    def open_one(uri: str, **options: object) -> Source:
        retry = RetryPolicy(opening=20.0, stall=3.0, first_pause=0.1, longest_pause=0.3)
        sources.append(open_camera(uri, CaptureOptions(retry=retry, **options)))  # type: ignore[arg-type]
        sources[-1].start(lambda: None)
        return sources[-1]

    yield open_one
    for source in sources:
        source.close()


def some(source: Source, count: int = 1, seconds: float = 60.0) -> list[Frame]:
    """The next frames, each newer than the one before."""
    found: list[Frame] = []
    until = time.monotonic() + seconds
    while len(found) < count:
        assert time.monotonic() < until, (source.state, source.trouble)
        frame = source.slot.take()
        if frame is None:
            time.sleep(0.005)
        else:
            found.append(frame)
    return found


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_stamps_frames_and_pictures_are_exact(opened) -> None:
    with publisher("/front/image_raw", report=True, info=INFO, frame_id="front_optical") as sender:
        found = some(opened("ros2:///front/image_raw"), 8)
        sent = {line["stamp"]: line["number"] for line in sender.end() if "stamp" in line}
    for frame in found:
        assert frame.header is not None
        assert burnt(frame.image) == sent[frame.header.stamp]
        assert frame.captured == pytest.approx(frame.header.stamp / 1e9, abs=1e-6)
        assert frame.header.frame_id == "front_optical"
        assert frame.header.calibration is not None
        np.testing.assert_array_equal(frame.header.calibration.k.ravel(), K)
        assert 0 <= frame.lag < 5
    assert len({id(frame.header.calibration) for frame in found if frame.header}) == 1
    assert [frame.sequence for frame in found] == sorted({frame.sequence for frame in found})


@pytest.mark.parametrize("encoding", ["rgb8", "mono8", "mono16", "bayer_rggb8", "jpeg", "png"])
def test_encodings_over_the_bus(opened, encoding: str) -> None:
    topic = "/cam/image/compressed" if encoding in ("jpeg", "png") else "/cam/image"
    with publisher(topic, encoding=encoding, padding=0 if "/c" in topic[5:] else 12, size=[161, 121]):
        (frame,) = some(opened(f"ros2://{topic}"))
    assert frame.image.shape == (121, 161, 3)
    expected = np.zeros((121, 161, 3), np.uint8)
    from bagged import numbered

    expected = numbered(burnt(frame.image), (161, 121))
    if encoding.startswith("mono"):
        assert np.ptp(frame.image, axis=2).max() == 0
    else:
        assert np.abs(frame.image.astype(int) - expected).mean() < (
            12 if encoding == "bayer_rggb8" else 4
        )  # a wrong pattern is off by 20


@pytest.mark.parametrize("reliability", ["best_effort", "reliable"])
@pytest.mark.parametrize("durability", ["volatile", "transient_local"])
def test_every_quality_of_service(opened, reliability: str, durability: str) -> None:
    with publisher("/q/image", reliability=reliability, durability=durability):
        assert len(some(opened("ros2:///q/image"), 3)) == 3


def test_a_picture_that_was_sent_before_anybody_came(opened) -> None:
    """Of a publisher that keeps its last one, as maps and calibration targets are."""
    options = {"reliability": "reliable", "durability": "transient_local", "count": 1, "stay": True}
    with publisher("/kept/image", **options) as sender:
        sender.line()
        time.sleep(1)
        (frame,) = some(opened("ros2:///kept/image"))
        assert burnt(frame.image) == 0


def test_a_request_that_no_publisher_meets_is_named_with_both_sides(opened) -> None:
    with publisher("/b/image", reliability="best_effort"):
        source = opened("ros2:///b/image?reliability=reliable")
        eventually(lambda: source.trouble)
    assert "a publisher offers best effort and ?reliability=reliable requests more" in source.trouble


def test_a_publisher_that_comes_late_and_restarts_with_another_quality_of_service(opened) -> None:
    source = opened("ros2:///late/image")
    time.sleep(1.5)
    assert source.captured == 0
    with publisher("/late/image", reliability="reliable") as first:
        some(source, 3)
        first.end()
    before = source.captured
    with publisher("/late/image", reliability="best_effort"):
        found = some(source, 12)
        assert source.state == LIVE
    assert found[-1].sequence > before


def test_a_publisher_that_falls_silent_is_a_camera_that_stalls(opened) -> None:
    with publisher("/s/image", count=200, rate=20, stay=True):
        source = opened("ros2:///s/image")
        some(source, 2)
        eventually(lambda: source.state == RETRYING)
        assert "is published, but nothing came for 2.7 s" in source.trouble
    eventually(lambda: "not published" in source.trouble or "nobody publishes" in source.trouble)


def test_a_publisher_that_is_killed(opened) -> None:
    with publisher("/k/image") as first:
        source = opened("ros2:///k/image")
        some(source, 2)
        first.process.kill()
    with publisher("/k/image"):
        eventually(lambda: source.reconnects or source.state == LIVE)
        some(source, 2)


def test_a_camera_that_is_closed_takes_leave(opened) -> None:
    """Others on the bus see it go at once, and not when they have waited for it."""
    from diinn.runtime.util.ros import Bus

    with publisher("/l/image"), Bus("watcher") as bus:
        source = opened("ros2:///l/image")
        some(source)
        watched = lambda: len(bus.node.get_subscriptions_info_by_topic("/l/image"))  # noqa: E731
        eventually(lambda: bus.spin() or watched() == 1)
        (worker,) = source.processes
        began = time.monotonic()
        source.close()
        eventually(lambda: not Path(f"/proc/{worker}").exists())
        eventually(lambda: bus.spin() or watched() == 0)
        assert time.monotonic() - began < 10  # its lease is 20 s


def test_a_calibration_that_changes_while_it_runs(opened) -> None:
    with publisher("/c/image", info=INFO) as sender:
        source = opened("ros2:///c/image")
        (frame,) = some(source)
        assert frame.header.calibration.k[0, 0] == 150
        sender.end()
    with publisher("/c/image", info={**INFO, "k": [170.0, *K[1:]]}):
        eventually(lambda: some(source)[0].header.calibration.k[0, 0] == 170)


def test_clocks_that_do_not_agree_are_logged(opened, caplog: pytest.LogCaptureFixture) -> None:
    with publisher("/a/image", ahead=3_600 * 10**9):
        (frame,) = some(opened("ros2:///a/image"))
    assert frame.lag == 0
    assert re.search(r"bear stamps -3(600|59\d)\.\d s old on arrival; clocks do not agree", caplog.text)


def test_the_clock_of_a_simulation(opened, caplog: pytest.LogCaptureFixture) -> None:
    with publisher("/m/image", simulated=True, rate=10):
        found = some(opened("ros2:///m/image?use_sim_time=true"), 12)[2:]
        assert "clocks do not agree" not in caplog.text
        assert max(frame.lag for frame in found) < 10
        assert all(1_000 < frame.captured < 2_000 for frame in found)
        some(opened("ros2:///m/image"), 1)
    assert "clocks do not agree" in caplog.text


def test_a_stamp_of_zero(opened, caplog: pytest.LogCaptureFixture) -> None:
    began = time.time_ns()
    with publisher("/z/image", stamps="zero"):
        (frame,) = some(opened("ros2:///z/image"))
    assert began < frame.header.stamp < time.time_ns()
    assert "images bear a stamp of zero" in caplog.text


def test_the_rate_that_is_asked_for(opened) -> None:
    with publisher("/r/image", rate=40):
        source = opened("ros2:///r/image", rate=5)
        found = some(source, 6)
    assert found[-1].arrived - found[0].arrived > 0.6  # four intervals of 0.2 s; at 40 frames/s all take 0.13


def test_an_encoding_that_is_not_known_is_named(run) -> None:
    with publisher("/e/image", encoding="nv21"):
        code, _, err = run("--camera", "ros2:///e/image", "--output", "none", model="nano")
    assert code == 2
    assert "camera /e/image sends images with an unknown encoding 'nv21'" in err
    assert err.count("\n") == 1


def test_a_topic_without_images(run) -> None:
    with publisher("/e/image", info=INFO):
        code, _, err = run("--camera", "ros2:///e/camera_info", "--output", "none", model="nano")
        assert code == 2
        assert "it holds sensor_msgs/msg/CameraInfo and no images" in err
        code, _, err = run("--camera", "ros2:///other", "--stall-timeout", "3", "--output", "none", model="nano")
        assert code == 2
        assert "nobody publishes it; there are /e/image" in err


def test_a_rectified_view_by_the_camera_info_beside_it(run) -> None:
    with publisher("/v/image", info=INFO):
        args = ("--camera", "ros2:///v/image", "--view", "flat=rectify:320x240", "--max-frames", "3")
        code, out, err = run(*args, "--output", "none", model="nano")
    assert (code, err) == (0, "")
    assert "3 frames" in out


def test_sizes_that_change_midway(run) -> None:
    def exchange() -> None:
        with publisher("/w/image", size=[160, 120]) as first:
            eventually(lambda: [160, 120] in sizes())
            first.end()
        with publisher("/w/image", size=[96, 64]):
            eventually(lambda: [96, 64] in sizes())
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=exchange)
    thread.start()
    args = ("--camera", "ros2:///w/image", "--scale", "1", "--output", "none", "--stats", "s.json")
    code, out, err = run(*args, model="nano")
    thread.join()
    assert code == 130
    assert "160x120 -> 160x120" in out
    assert "96x64 -> 96x64" in out
    assert "Error" not in err


def sizes() -> list[list[int] | None]:
    lines = Path("s.json").read_text().splitlines() if Path("s.json").exists() else []
    return [json.loads(line)["cameras"]["/w/image"]["size"] for line in lines if line.endswith("}")]


def test_topics_are_listed(run) -> None:
    with publisher("/front/image_raw") as front, publisher("/rear/image/compressed", encoding="jpeg") as rear:
        front.line()
        rear.line()
        for _ in range(3):  # on a busy machine nodes may be found late
            code, out, _ = run("--list-devices")
            assert code == 0
            if out.count("ros2://") == 2:
                break
    assert "ros2:///front/image_raw: a topic of images\n" in out
    assert "ros2:///rear/image/compressed: a topic of compressed images\n" in out


WRONG = {
    "ros2://": "'' is no topic: write ros2:///front/image_raw",
    "ros2:///a-b": "'/a-b' is no topic",
    "ros2:///a//b": "is no topic",
    "ros2:///a?reliability=some": "unknown reliability 'some'",
    "ros2:///a?reliable=1": "unknown option 'reliable': did you mean 'reliability'?",
    "ros2:/a": "write ros2:// with two slashes",
    "ros3:///a": "unknown camera scheme 'ros3': did you mean 'ros2'?",
}


@pytest.mark.parametrize("uri", WRONG)
def test_what_is_no_topic(uri: str) -> None:
    with pytest.raises(InputError) as wrong:
        open_camera(uri)
    assert WRONG[uri] in str(wrong.value)


def test_nothing_is_left_behind_by_cameras_that_were_ended(opened) -> None:
    """Fast DDS keeps files in /dev/shm, which a process that is killed would leave."""
    before = {p.name for p in Path("/dev/shm").iterdir()}
    with publisher("/n/image") as sender:
        source = opened("ros2:///n/image")
        some(source)
        source.close()
        sender.end()
    eventually(lambda: not {p.name for p in Path("/dev/shm").iterdir()} - before, 20)


def test_a_worker_that_hangs_is_killed(opened) -> None:
    with publisher("/h/image"):
        source = opened("ros2:///h/image")
        some(source)
        (worker,) = source.processes
        os.kill(worker, signal.SIGSTOP)
        eventually(lambda: source.reconnects == 1)
        assert not Path(f"/proc/{worker}").exists()


def test_a_camera_that_has_failed_for_good() -> None:
    retry = RetryPolicy(opening=9.0, stall=1.0, retries=0)
    source = open_camera("ros2:///nobody", CaptureOptions(retry=retry))
    source.start(lambda: None)
    eventually(lambda: source.state == FAILED)
    source.close()
    assert "nobody publishes it" in str(source.failure)
