"""Bags as outputs, read back by the independent ``mcap`` library: stamps, frames, camera_info, and how they end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bagged
import cv2
import numpy as np
import pytest
from bagged import IMAGE, LATE, Messages, drive, stamp, write
from diinn.benchmarks.mjpeg_server import burnt
from diinn.runtime import Calibration, ViewSpec
from diinn.runtime.geometry.view_camera import of_view

reader = pytest.importorskip("mcap.reader", reason="bags are read back by mcap: pip install mcap")
COUNT = 6


def contents(path: Path) -> dict[str, list[tuple[int, Any]]]:
    """By topic: (time of recording, message) of each, as mcap reads the file and rosbags the messages."""
    store = Messages().store
    found: dict[str, list[tuple[int, Any]]] = {}
    with path.open("rb") as file:
        opened = reader.make_reader(file, validate_crcs=True)
        summary = opened.get_summary()
        for schema, channel, message in opened.iter_messages():
            assert channel.message_encoding == "cdr"
            assert schema.encoding == "ros2msg"
            decoded = store.deserialize_cdr(message.data, schema.name)
            found.setdefault(channel.topic, []).append((message.log_time, decoded))
        counts = {summary.channels[i].topic: n for i, n in summary.statistics.channel_message_counts.items()}
        assert counts == {topic: len(messages) for topic, messages in found.items()}
    return found


def nanoseconds(message: Any) -> int:
    return int(message.header.stamp.sec * 10**9 + message.header.stamp.nanosec)


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    return write(tmp_path / "drive.mcap", drive(COUNT))


def test_a_view_with_the_stamps_it_came_with(run, bag: Path) -> None:
    code, _, err = run("--input", bag, "--out-size", "320x240", "--output", "o.mcap", model="nano")
    assert (code, err) == (0, "")
    found = contents(Path("o.mcap"))
    assert set(found) == {"/front/sr/image/compressed", "/front/sr/camera_info"}
    for messages in found.values():
        assert [at for at, _ in messages] == [stamp(n) + LATE for n in range(COUNT)]
        assert [nanoseconds(message) for _, message in messages] == [stamp(n) for n in range(COUNT)]
        assert {message.header.frame_id for _, message in messages} == {"front_optical"}
    for number, (_, message) in enumerate(found["/front/sr/image/compressed"]):
        assert message.format == "bgr8; jpeg compressed bgr8"
        image = cv2.imdecode(message.data, cv2.IMREAD_COLOR)
        assert image.shape == (240, 320, 3)
        assert burnt(image) == number
    info = found["/front/sr/camera_info"][0][1]
    assert (info.width, info.height, info.binning_x, info.roi.width) == (320, 240, 0, 0)
    np.testing.assert_allclose(info.k, [300, 0, 158.5, 0, 304, 122.5, 0, 0, 1])
    np.testing.assert_allclose(info.p, [300, 0, 158.5, 0, 0, 304, 122.5, 0, 0, 0, 1, 0])
    np.testing.assert_allclose(info.d, bagged.D)
    assert list(Path().glob(".diinn*")) == []


def test_several_views_and_where_they_look(run, bag: Path) -> None:
    views = {"whole": "full:320x240", "plate": "roi:40,30,80,60:320x240", "flat": "rectify:160x120"}
    views["side"] = "virtual:20,-5,50:160x120"
    args = [word for name, view in views.items() for word in ("--view", f"{name}={view}")]
    code, _, err = run("--input", bag, *args, "--output", "o.mcap?format=raw", model="nano")
    assert (code, err) == (0, "")
    found = contents(Path("o.mcap"))
    assert set(found) == {f"/front/sr/{n}/{what}" for n in views for what in ("image", "camera_info")} | {"/tf_static"}
    calibration = Calibration.of_message(
        "info", vars(Messages().store.deserialize_cdr(Messages().info(0), bagged.INFO)) | {"roi": None}
    )
    for name, text in views.items():
        image, info = found[f"/front/sr/{name}/image"][2][1], found[f"/front/sr/{name}/camera_info"][2][1]
        expected = of_view(ViewSpec.parse(text).view(bagged.SIZE, calibration), bagged.SIZE, calibration)
        assert (image.width, image.height) == (info.width, info.height) == expected.size
        assert (image.encoding, image.step, len(image.data)) == (
            "bgr8",
            3 * image.width,
            3 * image.width * image.height,
        )
        assert image.header == info.header
        for key in ("k", "d", "r", "p"):
            np.testing.assert_allclose(getattr(info, key), getattr(expected, key).ravel())
        assert image.header.frame_id == ("front_optical_side" if name == "side" else "front_optical")
    ((_, static),) = found["/tf_static"]
    (transform,) = static.transforms
    with Path("o.mcap").open("rb") as file:
        channels = reader.make_reader(file).get_summary().channels.values()
    (offered,) = [c.metadata["offered_qos_profiles"] for c in channels if c.topic == "/tf_static"]
    assert "durability: transient_local" in offered or "durability: 1" in offered
    assert (transform.header.frame_id, transform.child_frame_id) == ("front_optical", "front_optical_side")
    turn = transform.transform.rotation
    # The view's z axis in the camera's: to the right by 20 degrees, and down by 5.
    axis = rotated((turn.x, turn.y, turn.z, turn.w), np.array([0.0, 0, 1]))
    pan, tilt = np.radians([20, -5])
    np.testing.assert_allclose(
        axis, [np.sin(pan) * np.cos(tilt), -np.sin(tilt), np.cos(pan) * np.cos(tilt)], atol=1e-12
    )


def rotated(quaternion: tuple[float, float, float, float], vector: np.ndarray) -> np.ndarray:
    x, y, z, w = quaternion
    axis = np.array([x, y, z])
    return vector + 2 * np.cross(axis, np.cross(axis, vector) + w * vector)


def test_the_other_topics_are_copied(run, tmp_path: Path) -> None:
    rear = [m for m in drive(COUNT, "/rear/image_raw") if m[0] != "/words"]
    tail = [("/words", bagged.TEXT, stamp(COUNT) + 10**9, Messages().text("the end"))]
    bag = write(tmp_path / "drive.mcap", drive(COUNT) + rear + tail)
    args = ("--input", f"{bag}?topic=/front/image_raw", "--scale", "1", "--output", "o.mcap?copy=all&topic=/better")
    code, _, err = run(*args, model="nano")
    assert (code, err) == (0, "")
    found = contents(Path("o.mcap"))
    copied = {"/words": COUNT + 1, "/front/camera_info": COUNT, "/rear/image_raw": COUNT, "/rear/camera_info": COUNT}
    results = {"/better/image/compressed": COUNT, "/better/camera_info": COUNT}
    assert {topic: len(messages) for topic, messages in found.items()} == copied | results
    assert [message.data for _, message in found["/words"]] == [*(f"word {n}" for n in range(COUNT)), "the end"]
    before = contents(bag)
    assert [at for at, _ in found["/words"]] == [at for at, _ in before["/words"]]


def test_of_a_part_of_a_bag_that_part_is_copied(run, bag: Path) -> None:
    args = ("--input", bag, "--start", "0.2", "--duration", "0.25", "--scale", "1", "--output", "o.mcap?copy=all")
    code, _, err = run(*args, model="nano")
    assert (code, err) == (0, "")
    found = contents(Path("o.mcap"))
    assert [message.data for _, message in found["/words"]] == ["word 2", "word 3", "word 4"]
    assert [nanoseconds(m) for _, m in found["/front/sr/camera_info"]] == [stamp(2), stamp(3), stamp(4)]


def test_a_camera_of_another_kind_gets_its_time_of_capture(run) -> None:
    began = time.time_ns()
    args = ("--camera", "demo", "--max-frames", "3", "--scale", "1", "--output", "o.mcap")
    code, _, err = run(*args, model="nano")
    assert (code, err) == (0, "")
    found = contents(Path("o.mcap"))
    assert set(found) == {"/demo/sr/image/compressed", "/demo/sr/camera_info"}
    for (_, image), (_, info) in zip(*found.values(), strict=True):
        assert image.header == info.header
        assert image.header.frame_id == "demo"
        assert began - 10**9 < nanoseconds(image) < time.time_ns()
        assert not info.k.any()  # nobody has calibrated it


def test_images_of_two_cameras_in_one_namespace_are_kept_apart(run, tmp_path: Path) -> None:
    bag = write(tmp_path / "drive.mcap", drive(2, "/rig/left") + drive(2, "/rig/right", info=False))
    args = ("--input", f"{bag}?topic=/rig/left&topic=/rig/right", "--scale", "1", "--output", "o.mcap")
    code, _, err = run(*args, model="nano")
    assert (code, err) == (0, "")
    below = ("/rig/sr", "/rig/sr_2")
    assert set(contents(Path("o.mcap"))) == {
        f"{b}/{what}" for b in below for what in ("image/compressed", "camera_info")
    }


def test_sizes_that_change_midway(run, tmp_path: Path) -> None:
    made = Messages()
    shapes = ((24, 32), (24, 32), (48, 64))
    images = [made.image(stamp(n), np.full((*shape, 3), 90, np.uint8)) for n, shape in enumerate(shapes)]
    messages = [("/i", IMAGE, stamp(n), image) for n, image in enumerate(images)]
    bag = write(tmp_path / "drive.mcap", messages)
    code, _, err = run("--input", bag, "--scale", "2", "--output", "o.mcap?format=png", model="nano")
    assert (code, err) == (0, "")
    found = contents(Path("o.mcap"))
    sizes = [cv2.imdecode(message.data, cv2.IMREAD_COLOR).shape[:2] for _, message in found["/sr/image/compressed"]]
    assert sizes == [(48, 64), (48, 64), (96, 128)]
    assert [(info.height, info.width) for _, info in found["/sr/camera_info"]] == sizes


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_bag(tmp_path: Path, number: int) -> None:
    bag = write(tmp_path / "drive.mcap", drive(2000))
    command = [
        sys.executable,
        "-m",
        "diinn.runtime.cli.run",
        "--input",
        str(bag),
        "--model",
        "nano",
        "--out-size",
        "320x240",
    ]
    out = tmp_path / "o.mcap"
    process = subprocess.Popen(
        [*command, "--output", f"{out}?copy=all", "--stats", str(tmp_path / "s")], stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 120
    while not (tmp_path / "s").exists() or (tmp_path / "s").read_text().count("\n") < 3:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    found = contents(out)
    done = [nanoseconds(message) for _, message in found["/front/sr/camera_info"]]
    assert 0 < len(done) < 2000
    assert done == [stamp(n) for n in range(len(done))]
    assert len(done) - 1 <= len(found["/words"]) <= len(done) + 1  # nothing from after the last frame
    assert list(tmp_path.glob(".diinn*")) == []


REFUSED = {
    "o.mcap?format=webp": "unknown format 'webp': choose one of jpeg, png, raw",
    "o.mcap?formats=raw": "unknown option 'formats': did you mean 'format'?",
    "o.mcap?quality=101": "quality '101' is not a whole number from 1 to 100",
    "o.mcap?copy=some": "unknown copy 'some'",
    "o.mcap?topic=/a-b": "'/a-b' is no name of a topic",
    "o.mcap?topic=": "'' is no name of a topic",
    "drive.mcap": "would replace the input",
    "./drive.mcap": "would replace the input",
    "nowhere/": None,
    "folder.mcap": "is there and is no file",
}


@pytest.mark.parametrize("output", REFUSED)
def test_outputs_that_are_refused(run, bag: Path, output: str) -> None:
    Path("folder.mcap").mkdir()
    words = REFUSED[output]
    code, _, err = run("--input", "drive.mcap", "--output", output, "--scale", "1", model="nano")
    if words is None:
        assert (code, err) == (0, "")
        return
    assert code == 2
    assert words in err
    assert err.count("\n") == 1


def test_a_bag_that_was_cut_is_copied_as_far_as_its_types_are_known(run, tmp_path: Path) -> None:
    path = write(tmp_path / "x.db3", drive(60))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.6)])
    code, _, err = run("--input", path, "--scale", "1", "--output", "o.mcap?copy=all", model="nano")
    assert code == 1
    assert "is cut short or being written" in err
    found = contents(Path("o.mcap"))
    done = len(found["/front/sr/camera_info"])
    assert done > 12
    assert abs(len(found["/words"]) - done) <= 1


def test_one_bag_twice_or_a_topic_twice_is_refused(run, bag: Path) -> None:
    for outputs, words in (
        (("o.mcap?topic=/q", "o.mcap?topic=/z"), "is given twice"),
        (("o.mcap?copy=all&topic=/front",), "?copy=all would copy /front/camera_info into a view's own topic"),
    ):
        args = [word for output in outputs for word in ("--output", output)]
        code, _, err = run("--input", bag, "--scale", "1", *args, model="nano")
        assert code == 2
        assert words in err
        assert not Path("o.mcap").exists()


def test_nothing_to_copy_is_said(run, tmp_path: Path) -> None:
    code, _, err = run("--camera", "demo", "--output", "o.mcap?copy=all", model="nano")
    assert code == 2
    assert "no --input is one" in err
    bag = write(tmp_path / "drive.bag", drive(2, ros1=True))
    code, _, err = run("--input", bag, "--output", "o.mcap?copy=all", model="nano")
    assert code == 2
    assert "rosbags-convert" in err


def test_a_bag_of_ros1_becomes_one_of_ros2(run, tmp_path: Path) -> None:
    bag = write(tmp_path / "drive.bag", drive(3, ros1=True))
    code, _, err = run("--input", bag, "--view", "rectify:160x120", "--output", "o.mcap", model="nano")
    assert (code, err) == (0, "")
    found = contents(Path("o.mcap"))
    assert [nanoseconds(m) for _, m in found["/front/sr/camera_info"]] == [stamp(n) for n in range(3)]
    assert not found["/front/sr/camera_info"][0][1].d.any()


def test_a_bag_that_was_written_here_is_one_to_read(run, bag: Path) -> None:
    run("--input", bag, "--scale", "2", "--output", "o.mcap?copy=all", model="nano")
    code, out, err = run("--input", "o.mcap", "--scale", "1", "--output", "p.mcap", model="nano")
    assert (code, err) == (0, "")
    assert "/front/sr/image/compressed: 320x240 -> 320x240" in out
    assert [burnt(cv2.imdecode(m.data, 1)) for _, m in contents(Path("p.mcap"))["/front/sr/sr/image/compressed"]] == [
        *range(COUNT)
    ]
