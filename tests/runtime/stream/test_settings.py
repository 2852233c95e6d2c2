"""Cameras by a file, and what a deadline gives up."""

from pathlib import Path

import pytest
from diinn.runtime import CameraSettings, InputError, ViewSpec
from diinn.runtime.sources import CaptureOptions
from diinn.runtime.stream.deadline import HOLD, Deadline, Load
from diinn.runtime.stream.result import BICUBIC, REDUCED, WHOLE
from diinn.runtime.stream.settings import load

CALIBRATION = """\
image_width: 320
image_height: 240
camera_matrix: {rows: 3, cols: 3, data: [300, 0, 158, 0, 310, 121, 0, 0, 1]}
distortion_model: plumb_bob
distortion_coefficients: {rows: 1, cols: 5, data: [-0.28, 0.07, 0, 0, 0]}
"""
CAMERAS = """\
cameras:
  - name: front
    uri: rtsp://user:secret@10.0.0.7/live
    rate: 15
    flip: rotate-180
    weight: 2
    max_fps: 10
    calibration: front.yaml
    views:
      whole: full:640x480
      plate: roi:10,20,64,48:320x240
      flat: rectify:640x480
      other: rectify:front.yaml:64x48
      left: virtual:-20,0,60:320x240
  - uri: 1
    size: 320x240
    codec: mjpeg
  - uri: clips/film.avi
    loop: true
"""
BASE = CameraSettings("", capture=CaptureOptions(rate=30.0), views={"full": ViewSpec(scale=3.0)})


def written(folder: Path, text: str) -> Path:
    (folder / "front.yaml").write_text(CALIBRATION)
    path = folder / "cameras.yaml"
    path.write_text(text)
    return path


def test_a_file_of_cameras(tmp_path: Path) -> None:
    front, second, film = load(written(tmp_path, CAMERAS), BASE)
    assert (front.name, front.uri, front.weight, front.max_fps) == ("front", "rtsp://user:secret@10.0.0.7/live", 2, 10)
    assert (front.capture.rate, front.capture.flip) == (15, "rotate-180")
    assert list(front.views) == ["whole", "plate", "flat", "other", "left"]
    assert front.calibration is not None
    assert front.calibration.size == (320, 240)
    assert front.views["other"].calibration is not None
    assert (second.uri, second.capture.size, second.capture.codec, second.capture.rate) == (
        "1",
        (320, 240),
        "mjpeg",
        30,
    )
    assert second.views["full"].scale == 3
    assert (film.uri, film.capture.loop) == (str(tmp_path / "clips" / "film.avi"), True)


BAD = {
    "cameras": ("camera:\n  - uri: 0\n", "has no cameras"),
    "empty": ("cameras: []\n", "has no cameras"),
    "not yaml": ("cameras: [\n", "is not YAML"),
    "secret": ("cameras:\n  - uri: rtsp://admin:secret@10.0.0.2/x: front\n", "is not YAML, line 2, column"),
    "huge": (f"cameras:\n  - uri: 0\n    rate: {'9' * 400}\n", "is not a number"),
    "one slash": ("cameras:\n  - uri: rtsp:/admin:secret@10.0.0.2/x\n    flip: no\n", "unknown flip"),
    "a number": ("cameras:\n  - 7\n", "camera 1: it has no uri"),
    "other": ("cameras:\n  - uri: 0\nviews: {}\n", "unknown key 'views'"),
    "key": (
        "cameras:\n  - uri: demo\n  - uri: 0\n    wieght: 2\n",
        "camera 2: unknown key 'wieght': did you mean 'weight'",
    ),
    "twice": ("cameras:\n  - uri: demo\n    uri: 0\n", "line 3, column 5: a key stands here twice"),
    "two views": (
        "cameras:\n  - uri: 0\n    views: {a: 'full:8x8', a: 'full:9x9'}\n",
        "column 28: a key stands here twice",
    ),
    "no mapping": ("cameras: !!map front\n", "line 1, column 10: the tag '!!map' is not taken"),
    "odd key": ("? [cameras]\n: front\n", "line 1, column 3: a key is to be text"),
    "elsewhere": ("cameras:\n  - uri: 0\n    out-size: 64x48\n", "'out-size' is none of its keys: write views"),
    "for all": ("cameras:\n  - uri: 0\n    retries: 3\n", "give --retries, which holds for all"),
    "size": ("cameras:\n  - uri: 0\n    size: 640\n", "size: '640' is not WIDTHxHEIGHT"),
    "sexagesimal": ("cameras:\n  - uri: 0\n    size: [640, 480]\n", "is not WIDTHxHEIGHT"),
    "rate": ("cameras:\n  - uri: 0\n    rate: fast\n", "rate 'fast' is not a number"),
    "rate 0": ("cameras:\n  - uri: 0\n    rate: 0\n", "rate 0 is not from 0.001"),
    "nan": ("cameras:\n  - uri: 0\n    rate: .nan\n", "rate nan is not from 0.001"),
    "weight": ("cameras:\n  - uri: 0\n    weight: -1\n", "weight -1 is not above 0"),
    "loop": ("cameras:\n  - uri: 0\n    loop: maybe\n", "loop 'maybe' is neither true nor false"),
    "codec": ("cameras:\n  - uri: 0\n    codec: mjepg\n", "did you mean 'mjpeg'"),
    "two of a name": ("cameras:\n  - {uri: 0, name: a}\n  - {uri: 1, name: a}\n", "two cameras are called 'a'"),
    "fov": ("cameras:\n  - uri: 0\n    views: {a: 'virtual:0,0,200:64x48'}\n", "fov 200"),
    "views": ("cameras:\n  - uri: 0\n    views: full:64x48\n", "views are names with a view each"),
    "no views": ("cameras:\n  - uri: 0\n    views: {}\n", "has no views"),
    "view": ("cameras:\n  - uri: 0\n    views: {a: ful:64x48}\n", "did you mean 'full'"),
    "calibration": ("cameras:\n  - uri: 0\n    calibration: none.yaml\n", "cannot read calibration"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_name_the_block_and_the_nearest_key(tmp_path: Path, case: str) -> None:
    text, word = BAD[case]
    with pytest.raises(InputError) as error:
        load(written(tmp_path, text), BASE)
    assert word in str(error.value)
    assert "cameras.yaml" in str(error.value)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def loads(*names: str) -> list[Load]:
    return [Load(name, 1000, 16_000, 4_000) for name in names]


def taught(seconds: float, weights: dict[str, float], encode: float, decode: float) -> Deadline:
    """A deadline that has seen a batch of all cameras, whole."""
    found = Deadline(seconds, weights)
    found.learn(loads(*weights), dict.fromkeys(weights, WHOLE), encode, decode)
    return found


def test_lighter_cameras_give_up_first_and_views_shrink_before_they_are_bicubic() -> None:
    weights = {"a": 2.0, "b": 1.0, "c": 1.0}
    seen = []
    for decode in (0.0, 0.04, 0.06, 0.09, 0.2, 0.3, 0.6):
        deadline = taught(0.05, weights, 0.003, decode)
        seen.append(deadline.plan(loads(*weights), 0.0, 0.0))
    assert seen[0] == {"a": WHOLE, "b": WHOLE, "c": WHOLE}
    order = []
    for depth in range(7):
        deadline = Deadline(0.05, weights)
        deadline.depth = depth
        order.append([deadline._levels(depth)[camera] for camera in weights])
    assert order == [
        [WHOLE, WHOLE, WHOLE],
        [WHOLE, WHOLE, REDUCED],
        [WHOLE, REDUCED, REDUCED],
        [REDUCED, REDUCED, REDUCED],
        [REDUCED, REDUCED, BICUBIC],
        [REDUCED, BICUBIC, BICUBIC],
        [BICUBIC, BICUBIC, BICUBIC],
    ]
    assert [sum(q != WHOLE for q in levels.values()) for levels in seen] == sorted(
        sum(q != WHOLE for q in levels.values()) for levels in seen
    )
    assert seen[2]["c"] == REDUCED
    assert seen[2]["a"] == WHOLE
    assert set(seen[-1].values()) == {BICUBIC}


def test_no_more_is_given_up_than_needed() -> None:
    deadline = taught(0.05, {"a": 1.0, "b": 1.0}, 0.004, 0.064)  # 2 ms and 32 ms a camera
    assert deadline.plan(loads("a", "b"), 0.0, 0.0) == {"a": WHOLE, "b": REDUCED}  # 4 + 32 + 8
    assert deadline.plan(loads("a", "b"), 0.02, 0.0) == {"a": REDUCED, "b": REDUCED}  # 30 ms are left
    assert deadline.plan(loads("b"), 0.02, 0.0)["a"] == REDUCED  # who is not in the batch keeps what it has


def test_what_was_given_up_comes_back_slowly() -> None:
    deadline = taught(0.05, {"a": 1.0}, 0.002, 0.1)
    assert deadline.plan(loads("a"), 0.0, 0.0) == {"a": REDUCED}
    for _ in range(40):  # it was but a moment
        deadline.learn(loads("a"), {"a": REDUCED}, 0.002, 0.005)
    assert deadline.plan(loads("a"), 0.0, 1.0) == {"a": REDUCED}
    assert deadline.plan(loads("a"), 0.0, 1.0 + HOLD / 2) == {"a": REDUCED}
    assert deadline.plan(loads("a"), 0.0, 1.0 + HOLD) == {"a": WHOLE}


def test_a_batch_in_between_that_would_be_too_long_begins_the_wait_anew() -> None:
    deadline = taught(0.05, {"a": 1.0}, 0.002, 0.1)
    deadline.plan(loads("a"), 0.0, 0.0)
    for _ in range(40):
        deadline.learn(loads("a"), {"a": REDUCED}, 0.002, 0.005)
    deadline.plan(loads("a"), 0.0, 1.0)
    deadline.plan(loads("a"), 0.03, 1.0 + HOLD / 2)  # it had waited: 22 ms more would be too close
    assert deadline.plan(loads("a"), 0.0, 1.0 + HOLD) == {"a": REDUCED}


def test_costs_nobody_measures_are_forgotten_so_that_all_comes_back() -> None:
    deadline = taught(0.05, {"a": 1.0}, 0.5, 0.5)
    now, levels = 0.0, deadline.plan(loads("a"), 0.0, 0.0)
    assert levels == {"a": BICUBIC}
    for _ in range(3000):
        now += 0.03
        deadline.learn(loads("a"), levels, *((0.0, 0.0) if levels["a"] == BICUBIC else (0.002, 0.005)))
        levels = deadline.plan(loads("a"), 0.0, now)
        if levels["a"] == WHOLE:
            break
    assert levels == {"a": WHOLE}


def test_a_frame_that_is_late_already_does_not_cost_everything() -> None:
    deadline = taught(0.05, {"a": 1.0}, 0.002, 0.02)
    assert deadline.plan(loads("a"), 5.0, 0.0) == {"a": WHOLE}  # 22 of the 25 ms that are always a batch's
