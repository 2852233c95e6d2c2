"""Viewers' zooms between batches: how much time they get, and that they end."""

import time

import numpy as np
import pytest
from diinn.runtime import SuperResolver
from diinn.runtime.errors import OutOfMemory
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.sources import Frame, demo, open_source
from diinn.runtime.stream.camera_denoise import CameraDenoise
from diinn.runtime.stream.camera_lane import CameraLane
from diinn.runtime.stream.result import BICUBIC, WHOLE, Result
from diinn.runtime.stream.zooms import Zooms

FULL = ViewSpec(dsize=(320, 240))
LARGE = ViewSpec(dsize=(2400, 1800))


@pytest.fixture
def lane(nano: SuperResolver) -> CameraLane:
    source = open_source("demo")
    return CameraLane(source, {"full": FULL}, CameraDenoise(0, source, nano))


def frame(number: int) -> Frame:
    return Frame(demo.frame(number / 10, (160, 120)), "demo", number, time.time(), time.monotonic())


def offered(nano: SuperResolver, lane: CameraLane, given: list[Result]) -> Zooms:
    zooms = Zooms(nano, given.append)
    first = frame(0)
    zooms.offer(lane, first, nano.encode([first.image])[0])
    return zooms


def test_cameras_never_wait_for_what_was_saved_up(nano: SuperResolver, lane: CameraLane) -> None:
    given: list[Result] = []
    lane.publish({}, zooms={"~1": LARGE})
    zooms = offered(nano, lane, given)
    assert not zooms.due(frames_wait=True)
    for _ in range(100):
        zooms.earn(0.5)  # fifty seconds of batches
    began = time.monotonic()
    while zooms.due(frames_wait=True):
        zooms.step()
    assert time.monotonic() - began < 1  # a tenth of the last one, 0.05 s, and a step
    assert not given


def test_where_no_frame_waits_they_get_half_of_the_time(nano: SuperResolver, lane: CameraLane) -> None:
    given: list[Result] = []
    lane.publish({}, zooms={"~1": LARGE, "~2": FULL})
    zooms = offered(nano, lane, given)
    began, worked = time.monotonic(), 0.0
    while len(given) < 2:
        assert zooms.rest < 60
        time.sleep(zooms.rest)
        assert zooms.due(frames_wait=False)
        step = time.monotonic()
        zooms.step()
        worked += time.monotonic() - step
    assert worked < 0.75 * (time.monotonic() - began)
    assert zooms.rest == np.inf  # until there is a newer frame
    assert {result.view: result.image.shape for result in given} == {"~1": (1800, 2400, 3), "~2": (240, 320, 3)}
    assert all(result.quality == WHOLE for result in given)
    second = frame(1)
    zooms.offer(lane, second, None)  # a deadline had no time for it
    while len(given) < 4:
        zooms.step()
    assert [result.quality for result in given[2:]] == [BICUBIC, BICUBIC]


def test_what_its_viewer_left_is_let_go(nano: SuperResolver, lane: CameraLane) -> None:
    given: list[Result] = []
    lane.publish({}, zooms={"~1": LARGE})
    zooms = offered(nano, lane, given)
    zooms.step()
    lane.publish({}, zooms={})
    while zooms.rest < np.inf:
        zooms.step()
    assert not given
    assert not zooms._newest  # nor are the maps of a camera that has stalled kept


def test_want_of_memory_ends_one_picture(
    nano: SuperResolver, lane: CameraLane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given: list[Result] = []
    lane.publish({}, zooms={"~1": FULL})
    zooms = offered(nano, lane, given)
    with monkeypatch.context() as short:
        short.setattr(nano.backend, "in_workers", raising)
        caplog.set_level("WARNING")
        zooms.step()
        assert zooms.rest == np.inf  # not again for the same frame
        second = frame(1)
        zooms.offer(lane, second, nano.encode([second.image])[0])
        zooms.step()
    assert not given
    assert not lane.zoom_troubles
    assert [r.getMessage() for r in caplog.records] == ["out of device memory: a viewer's picture of demo is left out"]
    third = frame(2)
    zooms.offer(lane, third, nano.encode([third.image])[0])
    while not given:
        zooms.step()
    assert given[0].frame is third


def raising(*_: object) -> None:
    raise OutOfMemory("out of device memory")


def test_what_cannot_be_is_the_viewers_affair(nano: SuperResolver, lane: CameraLane) -> None:
    lane.publish({}, zooms={"~1": ViewSpec.parse("roi:150,0,20,20:64x64")})
    zooms = offered(nano, lane, [])
    zooms.step()
    assert "not inside the 160x120 frame" in lane.zoom_troubles["~1"]
    assert zooms.rest == np.inf
