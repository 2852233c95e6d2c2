"""The dial of cameras, videos and images as a stream turns it."""

import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from diinn.runtime import CameraSettings, CaptureOptions, InputError, Stream, Strength, SuperResolver
from diinn.runtime.noise.strength import NONE
from diinn.runtime.sources import demo
from diinn.runtime.stream import settings
from diinn.runtime.stream.stop import Stop
from streamed import Kept, camera, run_for, video


@pytest.fixture(scope="module")
def nano():  # type: ignore[no-untyped-def]
    with SuperResolver.open("nano") as opened:
        yield opened


def results(nano: SuperResolver, one: CameraSettings, frames: int) -> list:  # type: ignore[type-arg]
    sink = Kept()
    Stream([one], nano, sinks=[sink], max_frames=frames).run()
    return sink.results


def test_a_camera_is_told_what_its_frames_tell(nano: SuperResolver) -> None:
    noisy = results(nano, camera("demo", capture=CaptureOptions(noise=10)), 8)
    calm = results(nano, camera("demo"), 8)
    assert all(7 < result.strength.noise < 13 for result in noisy)
    assert all(result.strength.noise < 2.5 for result in calm)
    levels = [result.strength.noise for result in noisy]
    assert max(np.abs(np.diff(levels))) < 1


def test_images_are_taken_as_they_are_unless_asked(nano: SuperResolver, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), demo.frame(2.0, (160, 120), 10))
    uri = f"file://{tmp_path}/a.png"
    (plain,) = results(nano, camera(uri), 1)
    (cleaned,) = results(nano, camera(uri, denoise="auto"), 1)
    (by_hand,) = results(nano, camera(uri, denoise=Strength(10, 5)), 1)
    assert plain.strength == NONE
    assert cleaned.strength.noise == pytest.approx(10, abs=2)
    assert by_hand.strength == Strength(10, 5)
    np.testing.assert_array_equal(plain.image, nano.resize(plain.frame.image, (320, 240)))
    np.testing.assert_array_equal(by_hand.image, nano.resize(plain.frame.image, (320, 240), denoise=Strength(10, 5)))
    assert (cleaned.image != plain.image).any()


def test_a_video_gives_the_same_twice(nano: SuperResolver, tmp_path: Path) -> None:
    path = video(tmp_path / "a.avi", 12, 10, (64, 48))
    one, other = (results(nano, camera(f"file://{path}"), 12) for _ in range(2))
    assert [r.strength for r in one] == [r.strength for r in other]
    assert all((a.image == b.image).all() for a, b in zip(one, other, strict=True))
    assert len({r.strength for r in one}) > 1  # auto


def test_it_may_be_turned_while_it_runs(nano: SuperResolver) -> None:
    sink = Kept()
    stream = Stream([camera("demo", name="front"), camera("demo", name="rear", denoise=3)], nano, sinks=[sink])
    turned = []

    def turn() -> bool:
        if {"front", "rear"} == {r.camera for r in sink.results} and not turned:
            stream.set_denoise("front", 7)
            stream.set_denoise("rear", "auto")
            turned.append(time.monotonic())
            with pytest.raises(InputError, match="-1"):
                stream.set_denoise("front", -1)
            with pytest.raises(InputError, match="unknown camera"):
                stream.set_denoise("top", 1)
        return bool(turned) and time.monotonic() > turned[0] + 2

    stream.run(Stop(turn))
    front, rear = ([r for r in sink.results if r.camera == name] for name in ("front", "rear"))
    assert front[0].strength != Strength(7)
    assert front[-1].strength == Strength(7)
    assert rear[0].strength == Strength(3)
    assert rear[-1].strength != Strength(3)
    cameras = stream.snapshot(final=True)["cameras"]
    assert cameras["front"]["denoise"] == {"auto": False, "noise": 7, "compression": 0}
    assert cameras["rear"]["denoise"]["auto"]


def test_frames_that_a_deadline_leaves_bicubic_are_told_nothing(nano: SuperResolver) -> None:
    sink = Kept()
    stream = Stream([camera("demo", denoise=5)], nano, sinks=[sink], deadline_ms=1)
    run_for(2, stream, lambda: any(r.quality == "bicubic" for r in sink.results))
    assert {r.strength for r in sink.results if r.quality == "bicubic"} == {NONE}


def test_a_model_without_a_dial_runs_cameras_as_before(dialless_path: Path) -> None:
    with SuperResolver.open(dialless_path) as plain:
        assert all(result.strength == NONE for result in results(plain, camera("demo"), 2))
        with pytest.raises(InputError, match="has no dial"):
            Stream([camera("demo", denoise=4)], plain)
        with pytest.raises(InputError, match="has no dial"):
            Stream([camera("demo", denoise="auto")], plain)


@pytest.mark.parametrize("value", ["much", -1, float("nan"), [1], True])
def test_settings_that_cannot_be(value: object) -> None:
    with pytest.raises(InputError, match=r"camera demo: .*give auto, a noise level"):
        CameraSettings("demo", denoise=value)  # type: ignore[arg-type]


def test_a_file_of_cameras_says_it_too(tmp_path: Path) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(
        "cameras:\n- {uri: demo, name: a, denoise: auto, noise: 8}\n- {uri: demo, name: b, denoise: 5}\n"
        "- {uri: demo, name: c, denoise: [4, 30]}\n- {uri: demo, name: d}\n"
    )
    a, b, c, d = settings.load(path, CameraSettings("", denoise=2.0))
    assert (a.denoise, b.denoise, c.denoise, d.denoise) == ("auto", Strength(5), Strength(4, 30), 2.0)
    assert (a.capture.noise, b.capture.noise) == (8, 0)
    for wrong, word in (("denoise: lots", "camera 1: denoise 'lots'"), ("noise: loud", "noise 'loud' is not a number")):
        path.write_text(f"cameras:\n- {{uri: demo, {wrong}}}\n")
        with pytest.raises(InputError, match=word):
            settings.load(path, CameraSettings(""))


def test_the_command_shows_the_difference(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """The demo camera with a noisy sensor, cleaned and not."""
    pictures = {}
    for how in ("auto", "0"):
        code, out, err = run(
            *("--camera", "demo", "--noise", 10, "--denoise", how, "--scale", 1, "--max-frames", 3),
            *("--output", f"{how}/*.png", "--stats", f"{how}.jsonl", "--headless"),
            model="nano",
        )
        assert code == 0, err
        pictures[how] = cv2.imread(str(sorted((tmp_path / how).glob("*.png"))[0])).astype(float)
        last = json.loads((tmp_path / f"{how}.jsonl").read_text().splitlines()[-1])["cameras"]["demo"]["denoise"]
        assert last["auto"] == (how == "auto")
        assert (last["noise"] > 6) == (how == "auto")
        assert ("denoise auto" in out) == (how == "auto")
    clean = demo.frame(0.0, (160, 120)).astype(float)
    auto, plain = (np.sqrt(np.mean((pictures[how] - clean) ** 2)) for how in ("auto", "0"))
    assert auto < 0.9 * plain


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("--camera", "demo", "--denoise", "strong"), "denoise 'strong' is not understood"),
        (("--camera", "demo", "--denoise", "nan"), "noise = nan is not a finite number"),
        (("--camera", "demo", "--noise", "200"), "'200' is not a number of grey levels from 0 to 100"),
        (("--input", "photo.png", "--noise", "5"), "noise 5 is for the demo camera: files have their own"),
        (("--camera", "rtsp://127.0.0.1:9/x", "--noise", "5"), "noise 5 is for the demo camera"),
    ],
)
def test_arguments_that_cannot_be(run, photo_path: Path, args: tuple[str, ...], word: str) -> None:  # type: ignore[no-untyped-def]
    code, _, err = run(*args)
    assert code == 2
    assert word in err
