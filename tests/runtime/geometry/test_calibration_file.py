"""Files of calibrations as people have them: messages, older ROS, parts of a sensor; and hostile ones."""

import json
import logging
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from diinn.runtime import Calibration, InputError

K = [300.0, 0, 158, 0, 310, 121, 0, 0, 1]
D = [0.02, -0.01, 0.003, -0.001]
P = [280.0, 0, 160, 0, 0, 290, 120, 0, 0, 0, 1, 0]
FILE = {
    "image_width": 320,
    "image_height": 240,
    "camera_matrix": {"rows": 3, "cols": 3, "data": K},
    "distortion_coefficients": {"rows": 1, "cols": 4, "data": D},
    "rectification_matrix": {"rows": 3, "cols": 3, "data": [1, 0, 0, 0, 1, 0, 0, 0, 1]},
    "projection_matrix": {"rows": 3, "cols": 4, "data": P},
}
MESSAGE = """\
header:
  stamp:
    sec: 1700000000
    nanosec: 5
  frame_id: camera
height: 240
width: 320
distortion_model: plumb_bob
d:
- -0.28
- 0.07
- 0.001
- -5.0e-04
- 0.0
k: [300.0, 0.0, 158.0, 0.0, 310.0, 121.0, 0.0, 0.0, 1.0]
r: [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
p: [280.0, 0.0, 160.0, 0.0, 0.0, 290.0, 120.0, 0.0, 0.0, 0.0, 1.0, 0.0]
binning_x: 0
binning_y: 0
roi:
  x_offset: 0
  y_offset: 0
  height: 0
  width: 0
  do_rectify: false
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def loaded(folder: Path, **changes: object) -> Calibration:
    """Of the file above, with other fields; those of None are left out."""
    fields = {key: value for key, value in (FILE | changes).items() if value is not None}
    return Calibration.load(written(folder / "calib.yaml", yaml.safe_dump(fields)))


def shouted(text: str) -> str:
    """A message of ROS 1."""
    for key in "dkrp":
        text = text.replace(f"\n{key}:", f"\n{key.upper()}:")
    return text


def indented(text: str, *names: str) -> str:
    """Below the names of a topic or of nodes."""
    for name in reversed(names):
        text = f"{name}:\n" + "".join(f"  {line}\n" for line in text.splitlines())
    return text


MESSAGES = {
    "ROS 2": MESSAGE + "---\n",
    "ROS 1": shouted(MESSAGE) + "---\n",
    "one that goes on": MESSAGE + "---\n" + MESSAGE + "---\nheader:\n  sta",
    "after a line": "---\n" + MESSAGE,
    "below a topic": indented(MESSAGE, "/camera/camera_info"),
    "below a node": indented(MESSAGE, "/camera", "ros__parameters"),
    "below a name": indented(MESSAGE, "/**", "ros__parameters", "camera_info"),
    "with a byte order mark": "\ufeff" + MESSAGE,
    "of Windows": MESSAGE.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_a_camera_info_message_is_the_file_of_the_same_camera(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    data = [-0.28, 0.07, 0.001, -5e-4, 0.0]
    file = loaded(tmp_path, distortion_model="plumb_bob", distortion_coefficients={"data": data})
    path = tmp_path / "message.yaml"
    path.write_bytes(MESSAGES[case].encode())
    message = Calibration.load(path)
    assert (message.size, message.fisheye) == (file.size, False)
    for field in ("k", "distortion", "rotation", "projection"):
        np.testing.assert_array_equal(getattr(message, field), getattr(file, field))
    assert not caplog.records


@pytest.mark.parametrize(
    ("fields", "fisheye"),
    [
        ({"distortion_model": "equidistant"}, True),
        ({"distortion_model": "Fisheye"}, True),
        ({"camera_model": "fisheye"}, True),
        ({"camera_model": "fisheye", "distortion_model": ""}, True),
        ({"camera_model": "KANNALA_BRANDT"}, True),
        ({"camera_model": "pinhole", "distortion_model": "equidistant"}, True),
        ({"camera_model": "pinhole"}, False),
        ({"distortion_model": "plumb_bob"}, False),
    ],
)
def test_the_model_is_the_one_that_is_stated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, fields: dict[str, str], fisheye: bool
) -> None:
    assert loaded(tmp_path, **fields).fisheye is fisheye
    assert not caplog.records


def test_a_camera_model_that_is_none_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for distortion, fisheye in (("plumb_bob", False), ("equidistant", True)):
        caplog.clear()
        assert loaded(tmp_path, camera_model="omni", distortion_model=distortion).fisheye is fisheye
        (line,) = caplog.messages
        assert (
            f"camera_model 'omni' is none that is known here; its distortion_model '{distortion}' is followed" in line
        )


@pytest.mark.parametrize("value", ["", None, "~"])
def test_a_model_that_is_not_stated_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, value: str | None
) -> None:
    text = yaml.safe_dump(FILE) + {"": "distortion_model: ''", None: "", "~": "distortion_model:"}[value]
    assert not Calibration.load(written(tmp_path / "calib.yaml", text)).fisheye
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().endswith(
        "calib.yaml' states no distortion_model and is taken for a pinhole: write 'distortion_model: equidistant' if "
        "it is a fisheye"
    )


@pytest.mark.parametrize(
    ("count", "extra", "warned"), [(4, "", True), (5, "", False), (4, "fisheye_model: 0\n", False)]
)
def test_four_coefficients_of_opencv_may_be_a_fisheyes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, count: int, extra: str, warned: bool
) -> None:
    text = opencv(tmp_path / "a.yaml", np.full(count, 0.01)).read_text() + extra
    assert not Calibration.load(written(tmp_path / "b.yaml", text)).fisheye
    assert ["states no fisheye_model" in record.getMessage() for record in caplog.records] == [True] * warned


def opencv(path: Path, distortion: object) -> Path:
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.write("image_width", 320)
    storage.write("image_height", 240)
    storage.write("camera_matrix", np.reshape(K, (3, 3)))
    storage.write("distortion_coefficients", np.asarray(distortion))
    storage.release()
    return path


@pytest.mark.parametrize("ending", ["yaml", "xml", "json"])
def test_opencvs_own_files_with_a_byte_order_mark(tmp_path: Path, ending: str) -> None:
    path = opencv(tmp_path / f"a.{ending}", np.array([-0.28, 0.07, 0.001, -0.0005, 0.0]))
    plain = Calibration.load(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    marked = Calibration.load(path)
    np.testing.assert_array_equal(marked.k, plain.k)
    np.testing.assert_array_equal(plain.k, np.reshape(K, (3, 3)))
    np.testing.assert_array_equal(marked.distortion, plain.distortion)


def test_a_part_of_the_sensor_sees_what_the_whole_one_sees_there(tmp_path: Path) -> None:
    """``roi`` in pixels of the sensor, then ``binning``: pixels of the frame that is sent lie where it says."""
    base = {"distortion_model": "plumb_bob"}
    whole = loaded(tmp_path, **base)
    roi = {"x_offset": 40, "y_offset": 20, "width": 200, "height": 100, "do_rectify": True}
    part = loaded(tmp_path, **base, roi=roi)
    assert part.size == (200, 100)
    part_x, part_y = part.maps(*part.rectified((200, 100)), (200, 100))
    whole_x, whole_y = whole.maps(*whole.rectified((320, 240)), (320, 240))
    np.testing.assert_allclose(part_x, whole_x[20:120, 40:240] - 40, atol=1e-3)
    np.testing.assert_allclose(part_y, whole_y[20:120, 40:240] - 20, atol=1e-3)
    small = loaded(tmp_path, **base, roi=roi, binning_x=2, binning_y=4)
    assert small.size == (100, 25)
    small_x, small_y = small.maps(*small.rectified((200, 100)), (200, 100))
    np.testing.assert_allclose((small_x + 0.5) * 2 - 0.5, part_x, atol=1e-3)  # pixels are areas
    np.testing.assert_allclose((small_y + 0.5) * 4 - 0.5, part_y, atol=1e-3)


def test_a_part_that_is_the_whole_changes_nothing(tmp_path: Path) -> None:
    roi = {"x_offset": 0, "y_offset": 0, "width": 320, "height": 240, "do_rectify": False}
    one, other = (
        loaded(tmp_path, camera_model="pinhole"),
        loaded(tmp_path, camera_model="pinhole", roi=roi, binning_x=1),
    )
    assert one.size == other.size
    np.testing.assert_array_equal(one.k, other.k)


BAD: dict[str, tuple[dict[str, object], str]] = {
    "both models": ({"camera_model": "fisheye", "distortion_model": "plumb_bob"}, "contradict each other"),
    "an unknown camera": ({"camera_model": "fisheyes"}, "unknown camera_model 'fisheyes': did you mean 'fisheye'"),
    "a part outside": ({"roi": {"x_offset": 300, "width": 40}}, "its roi 300,0,40,240 is not inside 320x240"),
    "half a pixel": ({"roi": {"x_offset": 0.5}}, "roi x_offset 0.5 is not a whole number"),
    "less than nothing": ({"roi": {"x_offset": -4}}, "roi x_offset -4 is not a whole number"),
    "no part": ({"roi": 3}, "its roi is no mapping"),
    "all binned": ({"binning_x": 1000}, "leaves no pixel"),
    "not calibrated": ({"camera_matrix": [0] * 9}, "the camera is not calibrated, its matrix is all zeros"),
    "half a size": ({"image_width": 320.5}, "image_width 320.5 is not a whole number"),
    "an endless size": ({"image_width": "9" * 4000}, "is not a whole number"),
    "an endless number": ({"camera_matrix": ["9" * 4000, *K[1:]]}, "are not finite"),
    "beyond all cameras": ({"projection_matrix": [1e300, *P[1:]]}, "above 1e\\+09, which no camera has"),
    "a mapping": ({"camera_matrix": {"rows": 3}}, "it has no 'data'"),
    "a list of lists": ({"camera_matrix": [[1, 2], [3]]}, "no camera calibration"),
    "nothing": ({"camera_matrix": None}, "it has no 'camera_matrix'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_meant_is_one_line(tmp_path: Path, case: str) -> None:
    fields, words = BAD[case]
    stated = {} if "camera_model" in fields else {"distortion_model": "plumb_bob"}
    with pytest.raises(InputError, match=words) as error:
        loaded(tmp_path, **{**stated, **fields})
    assert "calib.yaml" in str(error.value)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def test_of_two_cameras_in_one_file_none_is_guessed(tmp_path: Path) -> None:
    text = indented(MESSAGE, "/left/camera_info") + indented(MESSAGE, "/right/camera_info")
    with pytest.raises(InputError, match="it holds several, '/left/camera_info', '/right/camera_info': a file each"):
        Calibration.load(written(tmp_path / "calib.yaml", text))


DEPTH = 100_000
HOSTILE = {
    "brackets": "%YAML:1.0\n---\na: " + "[" * DEPTH + "]" * DEPTH,
    "braces": '{"a": ' + '{"a": ' * DEPTH + '"opencv-matrix"' + "}" * DEPTH + "}",
    "dashes": "%YAML:1.0\n---\na:\n   " + "- " * DEPTH + "1\n",
    "indented": "%YAML:1.0\n---\n" + "".join(" " * i + "a:\n" for i in range(2000)),
    "elements": '<?xml version="1.0"?><opencv_storage>' + "<a>" * DEPTH + "</a>" * DEPTH + "</opencv_storage>",
    "a large matrix": "%YAML:1.0\n---\nimage_width: 8\nimage_height: 8\ncamera_matrix: !!opencv-matrix\n"
    "   rows: 2000000000\n   cols: 2000000000\n   dt: d\n   data: [ 1. ]\n",
    "a long file": "%YAML:1.0\n---\n" + "# nothing\n" * 500_000,
    "a nul": "%YAML:1.0\n---\nimage_width: 8\0\n",
    "ros, brackets": "camera_matrix: " + "[" * DEPTH,
    "ros, aliases": "a: &a [1]\ncamera_matrix: *a\n",
    "ros, a long file": "# nothing\n" * 100_000,
}


@pytest.mark.parametrize("case", HOSTILE)
def test_files_that_would_crash_or_fill_a_parser_are_one_line_at_once(tmp_path: Path, case: str) -> None:
    path = written(tmp_path / "calib.yaml", HOSTILE[case])
    begun = time.process_time()
    with pytest.raises(InputError, match=r"calib\.yaml") as error:
        Calibration.load(path)
    assert time.process_time() - begun < 5
    assert str(error.value).isprintable()


def test_cut_files_of_opencv_are_read_or_one_line(tmp_path: Path) -> None:
    refused = 0
    for ending in ("yaml", "xml", "json"):
        text = opencv(tmp_path / f"a.{ending}", D).read_text()
        for at in range(0, len(text), 7):
            try:
                Calibration.load(written(tmp_path / "b", text[:at]))
            except InputError as error:
                refused += str(error).isprintable()
    assert refused > 100


def test_a_json_file_of_a_message_is_read(tmp_path: Path) -> None:
    message = yaml.safe_load(MESSAGE)
    assert Calibration.load(written(tmp_path / "a.json", json.dumps({"msg": message}))).size == (320, 240)


def test_what_else_an_opencv_file_holds_may_be_long(tmp_path: Path) -> None:
    path = opencv(tmp_path / "a.yaml", np.zeros(5))
    points = (
        "image_points: !!opencv-matrix\n   rows: 1\n   cols: 90000\n   dt: d\n   data: [ " + "1.5, " * 90_000 + "1. ]\n"
    )
    path.write_text(path.read_text() + points)
    begun = time.process_time()
    assert Calibration.load(path).size == (320, 240)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><opencv_storage/>', "it defines entities"),
        ("<?xml version='1.0'?><opencv_storage><a></opencv_storage>", "it is not XML: mismatched tag"),
        ("<?xml version='1.0'?><opencv_storage/>", "it has no 'camera_matrix'"),
        ('{"camera_matrix": {"type_id": "opencv-matrix", "data": [1]}}', "a matrix of 1 values is not 3x3"),
        ('["opencv-matrix"]', "it has no 'camera_matrix'"),
        ("%YAML:1.0\n---\ncamera_matrix: !!opencv-matrix\n   data: !!binary abc\n", "the tag '!!binary' is not taken"),
    ],
)
def test_opencv_files_that_hold_something_else(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Calibration.load(written(tmp_path / "calib", text))
