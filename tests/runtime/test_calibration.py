"""Calibrated cameras and views in words: against OpenCV, against what was known beforehand, and bad files."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from diinn.runtime import Calibration, InputError, ViewSpec, demo
from diinn.runtime.bicubic import bicubic
from diinn.runtime.calibration import pinhole, turned
from diinn.runtime.view import View

K = np.array([[300.0, 0, 158], [0, 310, 121], [0, 0, 1]])
BARREL = [-0.28, 0.07, 0.001, -0.0005, 0.0]
ROS = """\
image_width: {width}
image_height: 240
camera_name: front
camera_matrix: {{rows: 3, cols: 3, data: [300, 0, 158, 0, 310, 121, 0, 0, 1]}}
distortion_model: {model}
distortion_coefficients: {{rows: 1, cols: 5, data: {data}}}
rectification_matrix: {{rows: 3, cols: 3, data: [1, 0, 0, 0, 1, 0, 0, 0, 1]}}
projection_matrix: {{rows: 3, cols: 4, data: [280, 0, 160, 0, 0, 290, 120, 0, 0, 0, 1, 0]}}
"""


def ros(path: Path, model: str = "plumb_bob", data: object = BARREL, width: object = 320) -> Path:
    path.write_text(ROS.format(model=model, data=data, width=width))
    return path


def opencv(path: Path, **extra: float) -> Path:
    storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_WRITE)
    storage.write("image_width", 320)
    storage.write("image_height", 240)
    storage.write("camera_matrix", K)
    storage.write("distortion_coefficients", np.array(BARREL))
    for key, value in extra.items():
        storage.write(key, value)
    storage.release()
    return path


def test_a_camera_info_and_opencvs_own_file(tmp_path: Path) -> None:
    info = Calibration.load(ros(tmp_path / "info.yaml"))
    assert info.size == (320, 240)
    np.testing.assert_array_equal(info.k, K)
    np.testing.assert_allclose(info.projection, [[280, 0, 160], [0, 290, 120], [0, 0, 1]])
    for name in ("own.yaml", "own.xml"):
        own = Calibration.load(opencv(tmp_path / name))
        np.testing.assert_array_equal(own.k, K)
        np.testing.assert_allclose(own.distortion, BARREL)
        np.testing.assert_array_equal(own.projection, K)
        assert not own.fisheye


def test_a_rectified_view_at_the_cameras_size_is_opencvs_undistortion(tmp_path: Path) -> None:
    info = Calibration.load(ros(tmp_path / "info.yaml"))
    view = ViewSpec.parse(f"rectify:{tmp_path}/info.yaml:320x240").view((320, 240))
    expected = cv2.initUndistortRectifyMap(info.k, info.distortion, None, info.projection, (320, 240), cv2.CV_32FC1)
    assert view.maps is not None
    np.testing.assert_allclose(view.maps[0], expected[0], atol=1e-4)
    np.testing.assert_allclose(view.maps[1], expected[1], atol=1e-4)


def test_a_fisheye_is_opencvs(tmp_path: Path) -> None:
    coefficients = [0.02, -0.01, 0.003, -0.001]
    info = Calibration.load(ros(tmp_path / "info.yaml", "equidistant", coefficients))
    map_x, map_y = info.maps(*info.rectified((320, 240)), (320, 240))
    expected = cv2.fisheye.initUndistortRectifyMap(
        K, np.array(coefficients), np.eye(3), info.projection, (320, 240), cv2.CV_32FC1
    )
    np.testing.assert_allclose(map_x, expected[0], atol=1e-4)
    np.testing.assert_allclose(map_y, expected[1], atol=1e-4)


@pytest.mark.parametrize("kind", ["rectify::", "virtual:12,-8,50:"])
def test_larger_views_and_parts_see_the_same_directions(tmp_path: Path, kind: str) -> None:
    """Twice the size, and any part of it: the pixel grids are refinements of each other, corners meet corners."""
    info = Calibration.load(ros(tmp_path / "info.yaml"))
    words = kind.replace("::", ":")
    small = ViewSpec.parse(f"{words}160x120").view((320, 240), info)
    large = ViewSpec.parse(f"{words}480x360").view((320, 240), info)
    assert small.maps is not None
    assert large.maps is not None
    for a, b in zip(small.maps, large.maps, strict=True):
        np.testing.assert_allclose(a, b[1::3, 1::3], atol=2e-3)  # the centre of three pixels is the one's
    part = ViewSpec.parse(f"{words}160x120").cropped((0.25, 0.5, 0.5, 0.25), (240, 90)).view((320, 240), info)
    assert part.dsize == (240, 90)
    assert part.maps is not None
    for a, b in zip(part.maps, large.maps, strict=True):
        np.testing.assert_allclose(a, b[180:270, 120:360], atol=2e-3)


def test_parts_of_parts_are_parts() -> None:
    spec = ViewSpec.parse("full:640x480").cropped((0.5, 0.5, 0.5, 0.5), (99, 99)).cropped((0, 0.5, 0.5, 0.5), (80, 60))
    view = spec.view((160, 120))
    assert (view.rect, view.dsize) == ((80, 90, 40, 30), (80, 60))
    roi = ViewSpec.parse("roi:10,20,40,40:80x80").cropped((0.25, 0.25, 0.5, 0.5), (64, 64)).view((160, 120))
    assert roi.rect == (20, 30, 20, 20)


def test_pan_is_to_the_right_and_tilt_is_up() -> None:
    """What a turned camera has in its middle lies there in the first one's picture."""
    size = (321, 241)
    camera = Calibration.assumed(size)
    middle = (size[0] - 1) / 2, (size[1] - 1) / 2
    for pan, tilt in ((10, 0), (0, 8), (-5, -6)):
        map_x, map_y = camera.maps(turned(pan, tilt), pinhole(40, (81, 61)), (81, 61))
        x, y = map_x[30, 40] - middle[0], map_y[30, 40] - middle[1]
        focal = camera.k[0, 0]
        assert x == pytest.approx(focal * np.tan(np.radians(pan)), abs=0.01)
        assert y == pytest.approx(-focal * np.tan(np.radians(tilt)) / np.cos(np.radians(pan)), abs=0.01)
    straight = ViewSpec.parse("virtual:0,0,60:321x241").view(size)
    assert straight.maps is not None
    np.testing.assert_allclose(straight.maps[0], np.broadcast_to(np.arange(321), (241, 321)), atol=1e-3)


def test_what_the_camera_cannot_see_is_outside(tmp_path: Path) -> None:
    """Behind it, and beyond where its distortion turns back: not the picture once more."""
    strong = Calibration.load(ros(tmp_path / "strong.yaml", data=[-0.35, 0.0, 0, 0, 0]))
    view = ViewSpec.parse("virtual:0,0,150:400x300").view((320, 240), strong)
    assert view.maps is not None
    seen = np.abs(view.maps[0]) < 1e5
    assert seen[150, 200]
    assert not seen[0, 0]
    fov = np.degrees(2 * np.arctan(1 / np.sqrt(3 * 0.35)))  # where r (1 - 0.35 r²) is largest
    columns = np.flatnonzero(seen[150])
    assert np.degrees(2 * np.arctan((columns[-1] - columns[0]) / 2 / pinhole(150, (400, 300))[0, 0])) == pytest.approx(
        fov, abs=1
    )
    aside = ViewSpec.parse("virtual:40,0,60:64x48").view((320, 240), Calibration.assumed((320, 240)))
    frame = np.full((240, 320, 3), 200, np.uint8)
    picture = bicubic(frame, aside)
    assert picture[:, -1].max() == 0
    with pytest.raises(InputError, match="sees nothing"):
        ViewSpec.parse("virtual:180,0,60:64x48").view((320, 240))


def test_a_fisheye_whose_polynomial_turns_back_shows_nothing_twice(tmp_path: Path) -> None:
    info = Calibration.load(ros(tmp_path / "info.yaml", "equidistant", [-0.12, -0.03, 0, 0]))
    map_x, _ = info.maps(np.eye(3), pinhole(170, (800, 20)), (800, 20))
    seen = np.abs(map_x[10]) < 1e5
    assert (np.diff(map_x[10][seen]) > 0).all()
    assert 100 < seen.sum() < 800


def test_frames_of_another_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    info = Calibration.load(ros(tmp_path / "info.yaml"))
    half = info.fitted((160, 120))
    assert "was scaled to 160x120: right where" in caplog.text
    np.testing.assert_allclose(half.k @ [0.1, 0.2, 1], (info.k @ [0.1, 0.2, 1] + [0.5, 0.5, 0]) / 2 - [0.5, 0.5, -0.5])
    with pytest.raises(InputError, match="is for 320x240 frames, these are 160x160: calibrate at this size"):
        info.fitted((160, 160))


BAD = {
    "not there": (None, "cannot read calibration"),
    "a binary": (b"\xff\xfe\x00\x81", "it is no text"),
    "empty": (b"", "is no camera calibration: it holds no keys"),
    "not yaml": (b"a: [", "is not YAML, line 1, column 5"),
    "no matrix": (b"image_width: 3\nimage_height: 2\n", "it has no 'camera_matrix'"),
    "text for a number": (ROS.format(model="plumb_bob", data=BARREL, width="wide").encode(), "no camera calibration"),
    "wide": (ROS.format(model="plumb_bob", data=[0.1, 0.2], width=320).encode(), "2 distortion coefficients"),
    "nan": (ROS.format(model="plumb_bob", data=[".nan", 0, 0, 0, 0], width=320).encode(), "is no camera calibration"),
    "zero": (ROS.format(model="plumb_bob", data=BARREL, width=0).encode(), "must be above 0"),
    "infinite": (ROS.format(model="plumb_bob", data=BARREL, width=".inf").encode(), "is no camera calibration"),
    "no rotation": (
        ROS.format(model="plumb_bob", data=BARREL, width=320).replace("[1, 0, 0, 0, 1", "[0, 0, 0, 0, 1").encode(),
        "is no rotation",
    ),
    "flat": (
        ROS.format(model="plumb_bob", data=BARREL, width=320).replace("121, 0, 0, 1]", "121, 0, 0, 0]").encode(),
        "cannot be inverted",
    ),
    "model": (ROS.format(model="plum_bob", data=BARREL, width=320).encode(), "did you mean 'plumb_bob'"),
    "opencv without": (b"%YAML:1.0\n---\nimage_width: 320\n", "it has no 'camera_matrix'"),
    "broken opencv": (b"%YAML:1.0\n---\n{{{", "is not YAML, line 3, column 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line(tmp_path: Path, case: str) -> None:
    content, word = BAD[case]
    path = tmp_path / "calib.yaml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        Calibration.load(path)
    assert word in str(error.value)
    assert "\n" not in str(error.value)
    assert "calib.yaml" in str(error.value)


def test_bicubic_views_are_opencvs() -> None:
    frame = demo.frame(1.0, (80, 60))
    inner = slice(8, -8)
    whole = bicubic(frame, View.resize((320, 240)))
    np.testing.assert_allclose(
        whole[inner, inner].astype(int),
        cv2.resize(frame, (320, 240), interpolation=cv2.INTER_CUBIC)[inner, inner],
        atol=3,
    )
    part = bicubic(frame, View.roi((20, 15, 40, 30), (160, 120)))
    np.testing.assert_allclose(part[inner, inner].astype(int), whole[60:180, 80:240][inner, inner], atol=3)
    v, u = np.mgrid[0:60, 0:80].astype(np.float32)
    np.testing.assert_array_equal(bicubic(frame, View.remap(u, v)), frame)
    small = bicubic(frame, View.resize((40, 30)))
    np.testing.assert_array_equal(small, cv2.resize(frame, (40, 30), interpolation=cv2.INTER_AREA))
