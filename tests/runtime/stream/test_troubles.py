"""A stream of which something fails: cameras, films, views, sinks, the device."""

import errno
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from diinn.benchmarks.mjpeg_server import burnt
from diinn.runtime import DiinnError, InputError, Stream, SuperResolver
from diinn.runtime.errors import SourceError
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.sinks import NullSink
from diinn.runtime.sources import CaptureOptions, RetryPolicy
from diinn.runtime.stream.result import Result
from diinn.runtime.stream.sink import Sink
from served import Served, until
from streamed import Kept, camera, clip, run_for

pytestmark = pytest.mark.usefixtures("nothing_leaks")


def test_a_sink_that_breaks_is_alone(mjpeg: Callable[..., Served], nano: SuperResolver) -> None:
    class Full(Sink):
        where = "full"
        closed_as_failed = False

        def write(self, result: Result) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self, *, failed: bool = False) -> None:
            self.closed_as_failed = failed

    full, free = Full(), Kept()
    stream = Stream([camera(mjpeg().url)], nano, sinks=[full, free])
    run_for(2.5, stream, lambda: len(free.results) > 5)
    assert len(free.results) > 5
    assert full.closed_as_failed
    assert "No space left" in stream.snapshot(final=True)["outputs"][0]["failure"]
    alone = Stream([camera("demo")], nano, sinks=[Full()])
    with pytest.raises(OSError, match="No space left"):
        run_for(20, alone)


def test_files_never_drop_and_live_cameras_go_on(
    mjpeg: Callable[..., Served], nano: SuperResolver, tmp_path: Path
) -> None:
    film = camera(f"file://{clip(tmp_path / 'film.avi', 12)}", name="film", capture=CaptureOptions(loop=True))
    slow = Kept(0.1)
    counted: Counter[str] = Counter()
    for result in Stream([film, camera(mjpeg().url, name="live")], nano, sinks=[slow]):
        counted[result.camera] += counted["live"] > 0 or result.camera == "live"
        if min(counted["film"], counted["live"]) >= 12:  # neither waits for the other
            break
    numbers = [burnt(result.image) for result in slow.results if result.camera == "film"]
    assert numbers == [number % 12 for number in range(len(numbers))]
    assert len(numbers) > 10


def test_a_film_can_be_iterated(nano: SuperResolver, tmp_path: Path) -> None:
    film = clip(tmp_path / "film.avi", 9)
    stream = Stream([camera(str(film))], nano)
    assert [burnt(result.image) for result in stream] == list(range(9))
    with pytest.raises(InputError, match="a stream runs once"):
        next(iter(stream))


def test_a_film_that_is_cut_short_is_an_error_once_its_frames_are_done(nano: SuperResolver, tmp_path: Path) -> None:
    whole = clip(tmp_path / "film.avi", 60).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    sink = Kept()
    with pytest.raises(DiinnError, match=r"is cut short, \d+ of its \d+ bytes are there: \d+ of 60 frames") as error:
        run_for(60, Stream([camera(str(tmp_path / "cut.avi"))], nano, sinks=[sink]))
    assert not isinstance(error.value, InputError)  # it failed while running
    assert [burnt(result.image) for result in sink.results] == list(range(len(sink.results)))
    assert 25 < len(sink.results) < 35


def test_a_film_that_fails_does_not_end_other_films(
    nano: SuperResolver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = clip(tmp_path / "film.avi", 40).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[:30_000])
    sink = Kept()
    run_for(60, Stream([camera(str(tmp_path / name)) for name in ("cut.avi", "film.avi")], nano, sinks=[sink]))
    assert Counter(result.camera for result in sink.results)["film.avi"] == 40
    assert caplog.text.count("is cut short") == 1


def test_where_no_camera_opens_it_is_said_or_waited_for(nano: SuperResolver) -> None:
    with pytest.raises(SourceError, match=r"camera 97 cannot be opened.*--retries N waits"):
        run_for(20, Stream([camera("97"), camera("98")], nano, sinks=[NullSink()], wait_for_cameras=False))
    patient = Stream([camera("97")], nano, sinks=[NullSink()])
    run_for(2.5, patient, lambda: patient.sources[0].state == "retrying")
    assert patient.sources[0].state == "retrying"
    given_up = Stream([camera("97", capture=CaptureOptions(retry=RetryPolicy(retries=0)))], nano, sinks=[NullSink()])
    with pytest.raises(SourceError, match="there is no /dev/video97: check"):
        run_for(20, given_up)


def test_a_camera_that_is_given_up_leaves_the_others(mjpeg: Callable[..., Served], nano: SuperResolver) -> None:
    lost = camera("97", capture=CaptureOptions(retry=RetryPolicy(retries=0)))
    stream = Stream([lost, camera(mjpeg().url)], nano, sinks=[NullSink()], wait_for_cameras=False)
    run_for(3, stream, lambda: stream.stats.processed > 5)
    assert stream.stats.processed > 5
    assert stream.snapshot(final=True)["cameras"]["97"]["state"] == "failed"


def test_a_view_that_no_longer_fits_is_left_out(
    mjpeg: Callable[..., Served], nano: SuperResolver, caplog: pytest.LogCaptureFixture
) -> None:
    served = mjpeg("160x120")
    retry = RetryPolicy(first_pause=0.1, longest_pause=0.2)
    views = {"whole": ViewSpec(scale=2.0), "corner": ViewSpec.parse("roi:100,80,40,30:80x60")}
    sink = Kept()
    settings = camera(served.url, name="front", views=views, capture=CaptureOptions(retry=retry))
    stream = Stream([settings], nano, sinks=[sink])
    stream.start()
    until(lambda: len(sink.results) > 4)
    assert {r.view for r in sink.results} == {"whole", "corner"}
    served.kill()
    served._command[served._command.index("160x120")] = "64x48"
    served.start()
    until(lambda: sink.results[-1].image.shape == (96, 128, 3))
    count = len(sink.results)
    until(lambda: len(sink.results) > count + 4)
    assert {r.view for r in sink.results[count:]} == {"whole"}
    assert "not inside the 64x48 frame" in stream.snapshot()["cameras"]["front"]["trouble"]
    stream.close()
    assert caplog.text.count("not inside the 64x48") == 1


def test_a_view_that_never_fits_is_an_error(nano: SuperResolver) -> None:
    settings = camera("demo", views={"a": ViewSpec.parse("roi:150,0,20,20:40x40")})
    with pytest.raises(InputError, match=r"view a: ROI .* not inside the 160x120 frame"):
        run_for(20, Stream([settings], nano, sinks=[NullSink()]))


def test_a_camera_whose_views_never_fit_does_not_end_the_others(
    mjpeg: Callable[..., Served], nano: SuperResolver
) -> None:
    """It comes late, when another has worked already."""
    late = mjpeg("64x48")
    late.kill()
    retry = RetryPolicy(first_pause=0.1, longest_pause=0.3)
    views = {"a": ViewSpec.parse("roi:100,80,20,20:40x40")}
    wrong = camera(late.url, name="wrong", views=views, capture=CaptureOptions(retry=retry))
    stream = Stream([camera(mjpeg().url, name="right"), wrong], nano, sinks=[NullSink()])
    stream.start()
    until(lambda: stream.stats.processed > 3)
    late.start()
    until(lambda: "not inside the 64x48 frame" in stream.snapshot()["cameras"]["wrong"]["trouble"])
    count = stream.stats.processed
    until(lambda: stream.stats.processed > count + 5)
    assert stream.busy
    stream.close()
    assert stream.snapshot(final=True)["cameras"]["wrong"]["processed"] == 0


def test_where_no_cameras_views_fit_that_is_an_error(mjpeg: Callable[..., Served], nano: SuperResolver) -> None:
    views = {"a": ViewSpec.parse("roi:150,0,20,20:64x64")}
    both = [camera(mjpeg().url, name=name, views=views) for name in ("left", "right")]
    with pytest.raises(InputError, match=r"camera (left|right): view a: ROI .* not inside the 160x120 frame"):
        run_for(60, Stream(both, nano, sinks=[NullSink()]))


def test_a_film_that_fails_does_not_end_live_cameras(
    mjpeg: Callable[..., Served], nano: SuperResolver, tmp_path: Path
) -> None:
    whole = clip(tmp_path / "film.avi", 60).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: len(whole) // 2])
    stream = Stream([camera(str(tmp_path / "cut.avi"), name="film"), camera(mjpeg().url)], nano, sinks=[NullSink()])
    stream.start()
    until(lambda: stream.sources[0].failure is not None, 60)
    count = stream.stats.processed
    until(lambda: stream.stats.processed > count + 5)
    stream.close()
    assert "is cut short" in str(stream.sources[0].failure)


def test_max_fps_of_a_film(nano: SuperResolver, tmp_path: Path) -> None:
    film = clip(tmp_path / "film.avi", 21)
    stream = Stream([camera(str(film), max_fps=12.0)], nano, sinks=[NullSink()])
    run_for(30, stream)
    assert stream.stats.processed == 21
    assert stream.stats.fps <= 13


def test_bad_settings() -> None:
    for options, word in (
        ({"weight": 0.0}, "weight 0 is not above 0"),
        ({"weight": float("nan")}, "weight nan"),
        ({"max_fps": 0.0}, "0 frames/s is not above 0"),
        ({"views": {}}, "has no views"),
        ({"views": {"a/b": ViewSpec()}}, "'a/b' is no name for a view"),
    ):
        with pytest.raises(InputError, match=word):
            camera("demo", **options)
    for fields, word in (
        ({"kind": "ful"}, "did you mean 'full'"),
        ({"kind": "virtual", "dsize": (64, 48)}, "fov in"),
        ({"kind": "virtual", "fov": 60.0}, "has a size of its own"),
        ({"scale": 0.0}, "scale 0 is not above 0"),
        ({"dsize": (0, 5)}, "size 0x5"),
    ):
        with pytest.raises(InputError, match=word):
            ViewSpec(**fields)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no camera"):
        Stream([], "nano")
    with pytest.raises(InputError, match="a deadline of -1 ms"):
        Stream(["demo"], "nano", deadline_ms=-1)
    with pytest.raises(InputError, match="two cameras are one device"):
        Stream([camera("/dev/video3"), camera("3")], "nano")


def test_a_view_that_cannot_be_made_is_the_cameras_own_trouble(
    mjpeg: Callable[..., Served], nano: SuperResolver
) -> None:
    sink = Kept()
    stream = Stream([camera(mjpeg().url, name="greedy"), camera(mjpeg().url, name="modest")], nano, sinks=[sink])
    stream.start()
    until(lambda: {r.camera for r in sink.results} == {"greedy", "modest"})
    stream.set_views("greedy", {"huge": ViewSpec(dsize=(10**6, 10**6))})
    until(lambda: "of memory" in stream.snapshot()["cameras"]["greedy"]["trouble"])
    count = len(sink.results)
    until(lambda: len(sink.results) > count + 5)
    assert {r.camera for r in sink.results[count + 2 :]} == {"modest"}
    stream.close()


def test_a_device_that_fails_ends_the_stream(mjpeg: Callable[..., Served], bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path) as resolver:
        sink = Kept()
        stream = Stream([camera(mjpeg().url)], resolver, sinks=[sink])
        stream.start()
        until(lambda: sink.results)
        sessions = resolver.backend._sessions
        resolver.backend._sessions = replace(sessions, encoder=None)  # as a device that is gone
        until(lambda: not stream.busy)
        stream.close()
        with pytest.raises(DiinnError, match="ONNX Runtime failed while running"):
            stream.check()
        resolver.backend._sessions = sessions
