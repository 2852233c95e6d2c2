"""A picture rendered by this file and a camera that moves over it: something to try without hardware."""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.noise.sensor_noise import Sensor, sensor_noise

WIDTH, HEIGHT = 1920, 1440
SENSOR = 2  # seed of the demo camera's


@lru_cache(maxsize=1)
def scene() -> UInt8:
    """The street of a small town, uint8 [1440, 1920, 3] BGR: bricks, windows, signs, wires, a tiled square."""
    rng = np.random.default_rng(20230103)
    image = _sky(rng)
    x = 0
    for i, width in enumerate((330, 410, 290, 370, 300, 220)):
        _house(image, rng, x, width, roof=int(260 + 120 * math.sin(1.9 * i)), kind=i)
        x += width
    _square(image, rng)
    _wires(image)
    _sign(image)
    _bicycle(image, (1330, 1150), 95)
    _tree(image, rng, (250, 1010))
    grain = cv2.GaussianBlur(rng.normal(0, 9, image.shape).astype(np.float32), (0, 0), 1.2)
    return _bytes(image.astype(np.float32) + grain)


def frame(time: float, size: tuple[int, int], noise: float = 0.0) -> UInt8:
    """What a camera of ``size`` (width, height) sees of the scene after ``time`` seconds: uint8 BGR.

    The camera drifts and breathes; its pixels average the scene, as a sensor's do.

    noise: root mean square of its sensor's noise, grey levels; the same for the same time
    """
    width, height = size
    zoom = 0.52 + 0.08 * math.sin(0.31 * time)
    view_w = min(WIDTH * zoom, HEIGHT * zoom * width / height)
    view_h = view_w * height / width
    left = (WIDTH - view_w) * (0.5 + 0.45 * math.sin(0.23 * time))
    top = (HEIGHT - view_h) * (0.62 + 0.3 * math.sin(0.37 * time + 1))
    inner = (round(4 * width), round(4 * height))
    shift = np.array(
        [[inner[0] / view_w, 0, -left * inner[0] / view_w], [0, inner[1] / view_h, -top * inner[1] / view_h]]
    )
    sharp = cv2.warpAffine(scene(), shift, inner, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    clean = np.asarray(cv2.resize(sharp, size, interpolation=cv2.INTER_AREA), np.uint8)
    return noisy(clean, noise, round(time * 1e3)) if noise else clean


def noisy(image: UInt8, level: float, seed: int) -> UInt8:
    """``image``, uint8 [H, W, 3] BGR, with the noise of one sensor, whose root mean square is ``level`` grey levels."""
    sensor = Sensor.draw(np.random.default_rng(SENSOR))
    rgb = np.ascontiguousarray(image[..., ::-1], np.float32) / np.float32(255)
    noise = sensor_noise(rgb, level, np.random.default_rng(abs(seed)), sensor=sensor)
    return np.ascontiguousarray(_bytes(np.rint((rgb + noise) * 255))[..., ::-1])


def _sky(rng: np.random.Generator) -> UInt8:
    rows = np.linspace(0, 1, HEIGHT, dtype=np.float32)[:, None, None]
    sky = np.array([235, 190, 140], np.float32) * (1 - rows) + np.array([225, 225, 215], np.float32) * rows
    cloud = sum(
        cv2.resize(
            rng.normal(0, 1, (3 * 2**k, 4 * 2**k)).astype(np.float32), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
        )
        / 2**k
        for k in range(6)
    )
    return _bytes(sky + 22 * np.asarray(cloud)[..., None])


def _house(image: UInt8, rng: np.random.Generator, x: int, width: int, roof: int, kind: int) -> None:
    base = 1010
    wall = tuple(int(c) for c in rng.integers((60, 70, 110), (140, 160, 215)))
    cv2.rectangle(image, (x, roof), (x + width, base), wall, -1)
    for row, y in enumerate(range(roof, base, 13)):  # courses of bricks
        cv2.line(image, (x, y), (x + width, y), tuple(int(c * 0.8) for c in wall), 2, cv2.LINE_AA)
        for joint in range(x + 15 * (row % 2), x + width, 30):
            cv2.line(image, (joint, y), (joint, min(y + 13, base)), tuple(int(c * 0.86) for c in wall), 2)
    tiles = np.array([[x - 12, roof], [x + width // 2, roof - 150], [x + width + 12, roof]], np.int32)
    cv2.fillPoly(image, [tiles], (52, 58 + 9 * kind, 120 - 12 * kind), cv2.LINE_AA)
    for k in range(1, 12):
        y = roof - 150 + k * 150 // 12
        half = (width // 2 + 12) * k // 12
        cv2.line(image, (x + width // 2 - half, y), (x + width // 2 + half, y), (35, 40, 70), 2, cv2.LINE_AA)
    for y in range(roof + 45, base - 150, 150):
        for wx in range(x + 35, x + width - 70, 105):
            _window(image, rng, wx, y)
    door = x + width // 2 - 38
    cv2.rectangle(image, (door, base - 140), (door + 76, base), (45, 62, 82 + 20 * (kind % 3)), -1)
    cv2.rectangle(image, (door, base - 140), (door + 76, base), (215, 220, 222), 4)
    cv2.circle(image, (door + 62, base - 66), 5, (70, 200, 225), -1, cv2.LINE_AA)


def _window(image: UInt8, rng: np.random.Generator, x: int, y: int) -> None:
    glass = tuple(int(c) for c in rng.integers((70, 60, 40), (190, 170, 130)))
    cv2.rectangle(image, (x, y), (x + 66, y + 96), glass, -1)
    cv2.line(image, (x + 8, y + 90), (x + 58, y + 8), tuple(min(255, c + 45) for c in glass), 6, cv2.LINE_AA)
    cv2.rectangle(image, (x, y), (x + 66, y + 96), (238, 240, 240), 5)
    cv2.line(image, (x + 33, y), (x + 33, y + 96), (238, 240, 240), 4)
    cv2.line(image, (x, y + 40), (x + 66, y + 40), (238, 240, 240), 4)
    for k in range(0, 33, 6):  # half-closed shutter
        cv2.line(image, (x + 5, y + 6 + k), (x + 30, y + 6 + k), (90, 120, 90), 3)


def _square(image: UInt8, rng: np.random.Generator) -> None:
    v, u = np.mgrid[1010:HEIGHT, 0:WIDTH].astype(np.float32)
    depth = 160.0 / (v - 960.0)
    across, along = (u - WIDTH / 2) * depth / 26, depth * 60
    tile = (np.floor(across) + np.floor(along)) % 2
    joint = np.minimum(across % 1, along % 1) < 0.06
    shade = rng.uniform(0.92, 1.08, (64, 64)).astype(np.float32)
    tone = shade[(np.floor(along).astype(int)) % 64, (np.floor(across).astype(int)) % 64]
    light, dark = np.array([168, 178, 186], np.float32), np.array([96, 104, 116], np.float32)
    stone = np.where(tile[..., None] > 0, light, dark) * tone[..., None]
    image[1010:] = _bytes(np.where(joint[..., None], stone * 0.55, stone))


def _wires(image: UInt8) -> None:
    span = np.arange(0, WIDTH + 1, 8)
    for k in range(5):
        sag = 90 + 34 * k + 0.00009 * (span - 900.0 - 60 * k) ** 2
        points = np.stack([span, sag], -1).astype(np.int32)
        cv2.polylines(image, [points], False, (30, 30, 34), 2, cv2.LINE_AA)
    for x in (130, 1730):
        cv2.line(image, (x, 60), (x, 1080), (42, 48, 52), 14, cv2.LINE_AA)
        cv2.line(image, (x - 60, 105), (x + 60, 105), (42, 48, 52), 9, cv2.LINE_AA)


def _sign(image: UInt8) -> None:
    cv2.rectangle(image, (560, 700), (1000, 812), (60, 44, 28), -1)
    cv2.rectangle(image, (560, 700), (1000, 812), (190, 205, 214), 5)
    cv2.putText(image, "DIINN CAFE", (580, 764), cv2.FONT_HERSHEY_DUPLEX, 1.95, (228, 236, 240), 4, cv2.LINE_AA)
    cv2.putText(
        image, "open daily 8.00 - 17.30", (584, 798), cv2.FONT_HERSHEY_SIMPLEX, 0.85, (190, 214, 228), 2, cv2.LINE_AA
    )
    cv2.circle(image, (1560, 760), 74, (36, 36, 196), -1, cv2.LINE_AA)
    cv2.circle(image, (1560, 760), 56, (240, 242, 244), -1, cv2.LINE_AA)
    cv2.putText(image, "30", (1512, 784), cv2.FONT_HERSHEY_DUPLEX, 2.1, (20, 20, 20), 6, cv2.LINE_AA)
    cv2.line(image, (1560, 834), (1560, 1100), (120, 126, 130), 10, cv2.LINE_AA)


def _bicycle(image: UInt8, centre: tuple[int, int], radius: int) -> None:
    x, y = centre
    for wheel in (x, x + 260):
        cv2.circle(image, (wheel, y), radius, (24, 24, 26), 7, cv2.LINE_AA)
        cv2.circle(image, (wheel, y), radius - 9, (150, 154, 158), 2, cv2.LINE_AA)
        for k in range(18):
            angle = 2 * math.pi * k / 18
            tip = (wheel + round((radius - 9) * math.cos(angle)), y + round((radius - 9) * math.sin(angle)))
            cv2.line(image, (wheel, y), tip, (176, 180, 184), 1, cv2.LINE_AA)
    joints = np.array([[x, y], [x + 90, y - 128], [x + 232, y - 118], [x + 118, y + 6], [x + 90, y - 128]], np.int32)
    cv2.polylines(image, [joints], False, (150, 74, 30), 9, cv2.LINE_AA)
    cv2.polylines(image, [np.array([[x, y], [x + 118, y + 6]], np.int32)], False, (150, 74, 30), 7, cv2.LINE_AA)
    fork = np.array([[x + 260, y], [x + 226, y - 158], [x + 262, y - 170]], np.int32)
    cv2.polylines(image, [fork], False, (150, 74, 30), 8, cv2.LINE_AA)
    cv2.line(image, (x + 62, y - 150), (x + 118, y - 146), (28, 28, 30), 13, cv2.LINE_AA)
    cv2.circle(image, (x + 118, y + 6), 20, (90, 94, 98), 4, cv2.LINE_AA)


def _tree(image: UInt8, rng: np.random.Generator, foot: tuple[int, int]) -> None:
    x, y = foot
    cv2.line(image, (x, y + 90), (x + 12, y - 260), (44, 62, 78), 30, cv2.LINE_AA)
    for _ in range(2600):
        angle, reach = rng.uniform(0, 2 * math.pi), 190 * math.sqrt(rng.uniform())
        leaf = (round(x + 10 + reach * math.cos(angle)), round(y - 350 + 0.9 * reach * math.sin(angle)))
        green = (int(rng.integers(30, 80)), int(rng.integers(90, 190)), int(rng.integers(40, 110)))
        cv2.ellipse(image, leaf, (8, 3), float(rng.uniform(0, 180)), 0, 360, green, -1, cv2.LINE_AA)


def _bytes(values: npt.NDArray[np.floating]) -> UInt8:
    clipped: UInt8 = np.clip(values, 0, 255).astype(np.uint8)
    return clipped
