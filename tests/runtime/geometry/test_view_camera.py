"""A view's camera_info against OpenCV: a point in space lands in the view where the frame shows it."""

import math

import cv2
import numpy as np
import pytest
from diinn.runtime import Calibration, ViewSpec
from diinn.runtime.geometry.view_camera import ViewCamera, of_view, quaternion
from hypothesis import given
from hypothesis import strategies as st

SIZE = (320, 240)
STEREO = cv2.Rodrigues(np.array([0.03, -0.05, 0.02]))[0]
MESSAGE = {
    "width": 320,
    "height": 240,
    "distortion_model": "plumb_bob",
    "d": [-0.28, 0.07, 0.001, -0.0005, 0.0],
    "k": [300.0, 0, 158, 0, 310, 121, 0, 0, 1],
    "r": STEREO.reshape(-1).tolist(),
    "p": [280.0, 0, 160, -33.6, 0, 290, 120, 0, 0, 0, 1, 0],
}
FISHEYE = MESSAGE | {"distortion_model": "equidistant", "d": [0.02, -0.01, 0.003, -0.001]}
RATIONAL = MESSAGE | {"distortion_model": "rational_polynomial", "d": [0.1, -0.2, 1e-3, 1e-3, 0.05, 0.3, -0.1, 0.02]}
UNTURNED = MESSAGE | {"r": np.eye(3).reshape(-1).tolist()}
MODELS = {"pinhole": MESSAGE, "fisheye": FISHEYE, "rational": RATIONAL, "not turned": UNTURNED}
VIEWS = ["full:640x480", "full:517x333", "roi:40,30,80,60:320x240", "roi:40.25,30.5,81.3,60.7:200x150"]
VIEWS += ["rectify:640x480", "virtual:25,-5,60:320x240", "virtual:-12,8,50:641x479"]


def project(points: np.ndarray, k: np.ndarray, model: str, d: np.ndarray) -> np.ndarray:
    """By OpenCV: [N, 3] in a camera's axes to [N, 2] pixels."""
    none = np.zeros(3)
    if model == "equidistant":
        return cv2.fisheye.projectPoints(points[:, None], none, none, k, d)[0].reshape(-1, 2)
    return cv2.projectPoints(points, none, none, k, d)[0].reshape(-1, 2)


def frame_position(text: str, view_pixels: np.ndarray, view) -> np.ndarray:
    """Where in the frame a view's pixels are taken from: as cv2.resize and cv2.remap place them."""
    if view.maps is not None:
        at = np.floor(view_pixels).astype(int)
        (u, v), (fx, fy) = at.T, (view_pixels - at).T  # bilinear: cv2.remap's is in steps of 1/32 before OpenCV 5
        rows = [(m[v, u], m[v, u + 1], m[v + 1, u], m[v + 1, u + 1]) for m in view.maps]
        positions = [(a * (1 - fx) + b * fx) * (1 - fy) + (c * (1 - fx) + d * fx) * fy for a, b, c, d in rows]
        return np.stack(positions, -1)
    x, y, width, height = view.rect or (0, 0, *SIZE)
    return (view_pixels + 0.5) * [width / view.dsize[0], height / view.dsize[1]] - 0.5 + [x, y]


def undistorted(pixels: np.ndarray, k: object, d: object, r: object, p: object) -> np.ndarray:
    """OpenCV's own, iterated until it is exact; versions before 5 have another name for that."""
    iterated = getattr(cv2, "undistortPointsIter", cv2.undistortPoints)
    return iterated(pixels, k, d, R=r, P=p, criteria=(cv2.TERM_CRITERIA_COUNT, 200, 0))


def points_seen(camera: ViewCamera, count: int = 200) -> np.ndarray:
    """Points [N, 3] in the axes of the frame's camera that lie inside the view."""
    rng = np.random.default_rng(3)
    width, height = camera.size
    pixels = rng.uniform([8, 8], [width - 9, height - 9], (count, 2))
    if camera.model == "equidistant":
        rays = cv2.fisheye.undistortPoints(pixels[:, None], camera.k, camera.d).reshape(-1, 2)
    else:
        rays = undistorted(pixels[:, None], camera.k, camera.d, None, None).reshape(-1, 2)
    points = np.column_stack([rays, np.ones(count)]) * rng.uniform(1, 9, (count, 1))
    return points if camera.turn is None else points @ camera.turn  # the inverse: the turn is a rotation


@pytest.mark.parametrize("text", VIEWS)
@pytest.mark.parametrize("model", MODELS)
def test_a_point_lands_on_the_same_scene(model: str, text: str) -> None:
    message = MODELS[model]
    calibration = Calibration.of_message("/front/camera_info", message)
    view = ViewSpec.parse(text).view(SIZE, calibration)
    camera = of_view(view, SIZE, calibration)
    assert camera.size == view.dsize
    points = points_seen(camera)
    in_view = points if camera.turn is None else points @ camera.turn.T
    pixels = project(in_view, camera.k, camera.model, camera.d)
    through_original = project(points, calibration.k, message["distortion_model"], np.array(message["d"]))
    inside = ((through_original > 1) & (through_original < np.array(SIZE) - 2)).all(1)
    assert inside.sum() > 50
    found = frame_position(text, pixels, view)
    assert np.abs(found - through_original)[inside].max() <= 0.01


@pytest.mark.parametrize("text", VIEWS)
@pytest.mark.parametrize("model", MODELS)
def test_p_is_the_rectified_camera_of_k_and_d(model: str, text: str) -> None:
    """What image_proc makes of the view by K, D, R and P: the point that P itself projects."""
    calibration = Calibration.of_message("/front/camera_info", MODELS[model])
    camera = of_view(ViewSpec.parse(text).view(SIZE, calibration), SIZE, calibration)
    points = points_seen(camera)
    in_view = points if camera.turn is None else points @ camera.turn.T
    rectified = (np.column_stack([in_view @ camera.r.T, np.zeros(len(points))])) @ camera.p.T
    by_p = rectified[:, :2] / rectified[:, 2:]
    pixels = project(in_view, camera.k, camera.model, camera.d)[:, None]
    if camera.model == "equidistant":
        by_d = cv2.fisheye.undistortPoints(pixels, camera.k, camera.d, R=camera.r, P=camera.p[:, :3])
    else:
        by_d = undistorted(pixels, camera.k, camera.d, camera.r, camera.p[:, :3])
    seen = ((by_p > 0) & (by_p < camera.size)).all(1)
    assert seen.sum() > 50
    assert np.abs(by_d.reshape(-1, 2) - by_p)[seen].max() <= 0.01


def test_the_second_camera_of_a_stereo_pair_keeps_its_baseline() -> None:
    calibration = Calibration.of_message("right", MESSAGE)
    for text, across in (("full:640x480", 2.0), ("roi:40,30,80,60:320x240", 4.0), ("rectify:640x480", 2.0)):
        camera = of_view(ViewSpec.parse(text).view(SIZE, calibration), SIZE, calibration)
        assert camera.p[0, 3] == pytest.approx(across * -33.6)
        assert camera.p[0, 3] / camera.p[0, 0] == pytest.approx(-33.6 / 280)  # metres
    virtual = of_view(ViewSpec.parse("virtual:0,0,60:320x240").view(SIZE, calibration), SIZE, calibration)
    assert not virtual.p[:, 3].any()


def test_the_turn_is_said_where_there_is_one() -> None:
    turned, level = (Calibration.of_message("info", message) for message in (MESSAGE, UNTURNED))
    rectify = ViewSpec.parse("rectify:640x480")
    np.testing.assert_allclose(of_view(rectify.view(SIZE, turned), SIZE, turned).turn, STEREO)
    assert of_view(rectify.view(SIZE, level), SIZE, level).turn is None
    assert of_view(ViewSpec.parse("full:64x48").view(SIZE, turned), SIZE, turned).turn is None


def test_what_was_read_out_of_the_sensor_is_in_the_matrices() -> None:
    """A roi and binning of the source: the view's camera_info has neither."""
    roi = {"x_offset": 20, "y_offset": 10, "width": 240, "height": 180, "do_rectify": False}
    calibration = Calibration.of_message("info", MESSAGE | {"roi": roi, "binning_x": 2, "binning_y": 2})
    size = (120, 90)
    assert calibration.size == size
    camera = of_view(ViewSpec.parse("full:240x180").view(size, calibration), size, calibration)
    np.testing.assert_allclose(camera.k, [[300, 0, 138], [0, 310, 111], [0, 0, 1]])  # the sensor's own, cut
    assert camera.p[0, 3] == pytest.approx(-33.6)


def test_a_camera_that_is_not_known_says_so_by_zeros(caplog: pytest.LogCaptureFixture) -> None:
    virtual = ViewSpec.parse("virtual:10,0,60:320x240").view(SIZE, None)
    calibration = Calibration.of_message("info", MESSAGE)
    odd = of_view(ViewSpec.parse("full:640x640").view((320, 320), None), (320, 320), calibration)
    assert "camera_info is left empty" in caplog.text
    for camera in (of_view(virtual, SIZE, None), of_view(ViewSpec.parse("full:9x9").view(SIZE), SIZE, None), odd):
        assert not camera.k.any()
        assert not camera.p.any()
        assert camera.turn is None


@given(st.lists(st.floats(-math.pi, math.pi), min_size=3, max_size=3))
def test_quaternions_turn_as_their_matrices(angles: list[float]) -> None:
    rotation = cv2.Rodrigues(np.array(angles))[0]
    x, y, z, w = quaternion(rotation)
    assert w >= 0
    assert x * x + y * y + z * z + w * w == pytest.approx(1)
    # By Rodrigues' formula again.
    length = math.sqrt(x * x + y * y + z * z)
    vector = np.array([x, y, z]) * (2 * math.atan2(length, w) / length if length > 1e-12 else 0)
    np.testing.assert_allclose(cv2.Rodrigues(vector)[0], rotation, atol=1e-7)
