"""``diinn-ros2`` as a launch file starts it: parameters, diagnostics, changes while it runs, and its end."""

import contextlib
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from diinn.runtime.geometry.calibration import turned
from rosbus import publisher, subscriber

pytestmark = pytest.mark.usefixtures("bus")
INFO = {"k": [150.0, 0.0, 79.0, 0.0, 152.0, 61.0, 0.0, 0.0, 1.0], "d": [0.0] * 5}


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "diinn.runtime.cli.ros2", *words]


def parameters(**values: str) -> list[str]:
    return [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]


@contextlib.contextmanager
def node(*words: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command("--ros-args", "-p", "model:=nano", *words), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def received(topic: str, kind: str = "Image", count: int = 1, **options: object) -> list[dict[str, Any]]:
    with subscriber(topic, kind, **options) as process:
        assert process.line() == {"ready": True}
        return [process.line() for _ in range(count)]


def changed(**values: Any) -> tuple[bool, str]:
    """Set parameters of the node together: all of them or none."""
    import rclpy.parameter
    from diinn.runtime.util.ros import Bus
    from rcl_interfaces.srv import SetParametersAtomically

    with Bus("asks") as bus:
        client = bus.node.create_client(SetParametersAtomically, "/diinn/set_parameters_atomically")
        assert client.wait_for_service(30)
        parameters = [rclpy.parameter.Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        future = client.call_async(SetParametersAtomically.Request(parameters=parameters))
        until = time.monotonic() + 30
        while not future.done():
            assert time.monotonic() < until
            bus.spin()
        result = future.result().result
        return result.successful, result.reason


def test_a_topic_in_and_a_topic_out_with_its_diagnostics() -> None:
    words = parameters(image="/front/image_raw", output="/front/sr")
    with publisher("/front/image_raw", info=INFO, rate=10), node(*words):
        (picture,) = received("/front/sr/image")
        assert (picture["size"], picture["frame_id"]) == ([320, 240], "front_optical")
        (camera,) = received("/front/sr/camera_info", "CameraInfo")
        assert camera["k"][0] == 300
        (found,) = received("/diagnostics", "DiagnosticArray", reliability="reliable")
    (status,) = found["status"]
    assert status["name"] == "diinn: /front/image_raw"
    assert (status["level"], status["message"]) == (0, "live")
    assert int(status["values"]["processed"]) > 0
    assert float(status["values"]["age_ms.p50"]) > 0


def test_a_namespace_and_topics_below_it() -> None:
    with publisher("/rig/front/image_raw", rate=10), node("-r", "__ns:=/rig", *parameters(image="front/image_raw")):
        (picture,) = received("/rig/sr/image")
    assert picture["size"] == [320, 240]


def test_several_topics_and_views() -> None:
    words = parameters(
        image="['/a/image','/b/image']", output="/sr", views="['plate=roi:0,0,80,60:160x120','all=full:80x60']"
    )
    with publisher("/a/image", rate=5), publisher("/b/image", rate=5), node(*words):
        (plate,) = received("/sr/a_image/plate/image")
        (small,) = received("/sr/b_image/all/image")
    assert (plate["size"], small["size"]) == ([160, 120], [80, 60])


def test_views_and_denoise_change_while_it_runs() -> None:
    with publisher("/c/image", info=INFO, rate=10), node(*parameters(image="/c/image", output="/c/sr")):
        received("/c/sr/image")
        assert changed(views=["flat=rectify:200x150", "part=roi:0,0,40,30:80x60"]) == (True, "")
        (flat,) = received("/c/sr/flat/image")
        (part,) = received("/c/sr/part/image")
        assert (flat["size"], part["size"]) == ([200, 150], [80, 60])
        done, why = changed(views=["part=roi:0,0,4000,30:80x60"])
        assert (done, "ROI" in why) == (False, True)
        received("/c/sr/part/image")  # what was there goes on
        assert changed(denoise=5.0) == (True, "")
        done, why = changed(denoise="much")
        assert not done
        assert why
        assert changed(model="small") == (False, "model is read at the start: start the node anew")
        done, why = changed(denoise=7.0, views=["all=full:40x30"], max_fps=5.0)  # the last is refused, so all are
        assert (done, why) == (False, "max_fps is read at the start: start the node anew")
        with subscriber("/c/sr/all/image") as nobody:
            assert nobody.line() == {"ready": True}
            assert received("/c/sr/part/image")[0]["size"] == [80, 60]
            assert nobody.end() == []
        (found,) = received("/diagnostics", "DiagnosticArray", reliability="reliable")
        assert float(found["status"][0]["values"]["denoise.noise"]) == 5


@pytest.fixture
def tf2_messages() -> None:
    if importlib.util.find_spec("tf2_msgs") is None:
        pytest.skip("no tf2_msgs here: source ROS 2, or make test-ros, which compiles it")


@pytest.mark.usefixtures("tf2_messages")
def test_transforms_of_turned_views_reach_those_who_come_later() -> None:
    """Of all views, and of one that was changed while the node runs its new turn."""
    words = parameters(
        image="/t/image", output="/t/sr", views="['side=virtual:20,-5,50:80x60','up=virtual:0,30,50:80x60']"
    )
    kept: dict[str, object] = {"reliability": "reliable", "durability": "transient_local"}
    with publisher("/t/image", info=INFO, rate=10), node(*words):
        for view in ("side", "up"):
            assert received(f"/t/sr/{view}/image")[0]["frame_id"] == f"front_optical_{view}"
        (found,) = received("/tf_static", "TFMessage", **kept)
        turns = {line["child"]: line for line in found["transforms"]}
        assert set(turns) == {"front_optical_side", "front_optical_up"}
        for name, angles in {"side": (20, -5), "up": (0, 30)}.items():
            assert turns[f"front_optical_{name}"]["frame_id"] == "front_optical"
            np.testing.assert_allclose(
                rotation(turns[f"front_optical_{name}"]["rotation"]), turned(*angles).T, atol=1e-12
            )
        assert changed(views=["side=virtual:-40,0,50:80x60"]) == (True, "")
        received("/t/sr/image")  # of one view alone
        with subscriber("/tf_static", "TFMessage", **kept) as later:
            assert later.line() == {"ready": True}
            turns = {line["child"]: line for line in later.line()["transforms"]}
        np.testing.assert_allclose(rotation(turns["front_optical_side"]["rotation"]), turned(-40, 0).T, atol=1e-12)


def rotation(quaternion: list[float]) -> np.ndarray:
    """The matrix of a quaternion (x, y, z, w)."""
    vector, real = np.array(quaternion[:3]), quaternion[3]
    x, y, z = vector
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * real * cross + 2 * cross @ cross


def test_a_publisher_that_comes_late_is_waited_for() -> None:
    with node(*parameters(image="/l/image", output="/l/sr")):
        (found,) = received("/diagnostics", "DiagnosticArray", reliability="reliable")
        assert found["status"][0]["level"] == 1
        with publisher("/l/image", rate=10):
            received("/l/sr/image")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_well(number: int) -> None:
    with publisher("/e/image", rate=10), node(*parameters(image="/e/image", output="/e/sr")) as process:
        received("/e/sr/image")
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == "diinn-ros2: ros2:///e/image -> ros2:///e/sr\n"
    assert err == ""


WRONG = {
    "no such model": ({"model": "smal"}, "smal"),
    "a view that is none": ({"views": "['x=oval:1x1']"}, "unknown kind of view 'oval'"),
    "two views of a name": ({"views": "['full:8x8','full:9x9']"}, "two views are called 'full'"),
    "a loop": ({"image": "/sr/image", "output": "/sr"}, "its own input: a loop"),
    "no number": ({"max_fps": "fast"}, "max_fps: 'fast' is not a number"),
    "a number for a topic": ({"image": "5"}, "parameter image: 5 is no text"),
    "words for a topic": ({"output": "'a b'"}, "parameter output: 'a b' is no name of a topic"),
    "no topic": ({"image": "''"}, "give a topic of images"),
    "no format": ({"format": "bmp"}, "unknown format 'bmp'"),
    "no calibration": ({"calibration": "none.yaml"}, "none.yaml"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_parameters(name: str, tmp_path: Path) -> None:
    values, words = WRONG[name]
    given = parameters(**{"image": "/a/image", "output": "/a/sr", **values})
    done = subprocess.run(
        command("--ros-args", *given), cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_help_names_every_parameter_and_words_of_other_commands_are_refused() -> None:
    done = subprocess.run(command("--help"), capture_output=True, text=True, timeout=60, check=True)
    for name in ("image", "views", "deadline_ms", "reliability"):
        assert f"\n  {name} " in done.stdout
    done = subprocess.run(command("--camera", "0"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "parameters are given as --ros-args -p NAME:=VALUE" in done.stderr


PROMISED = {
    "--out-size 640x480 --output ros2": ("/front/sr/image", "Image", [640, 480]),
    "format=jpeg": ("/front/sr/left/image/compressed", "CompressedImage", [320, 240]),
    "-p image:=/front/image_raw": ("/front/sr/image", "Image", [320, 240]),
    "__ns:=/front": ("/front/sr/flat/image", "Image", [640, 480]),
}


@pytest.mark.parametrize("part", PROMISED)
def test_the_commands_of_the_page(part: str) -> None:
    page = (ROOT / "docs" / "ros2.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(("diinn-run", "diinn-ros2")) and part in line]
    program, *words = shlex.split(line)
    topic, kind, size = PROMISED[part]
    module = "diinn.runtime.cli.ros2" if program == "diinn-ros2" else "diinn.runtime.cli.run"
    faster = ["-p", "model:=nano"] if program == "diinn-ros2" else ["--model", "nano"]
    process = subprocess.Popen([sys.executable, "-m", module, *words, *faster], stdout=subprocess.DEVNULL)
    try:
        with publisher("/front/image_raw", info=INFO, rate=5):
            (picture,) = received(topic, kind, reliability="best_effort")
    finally:
        process.terminate()
        process.wait(30)
    assert picture["size"] == size
