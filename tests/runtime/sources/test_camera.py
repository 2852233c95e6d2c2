"""Live sources: worker processes that are started again, whatever becomes of them."""

import itertools
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from diinn.benchmarks.mjpeg_server import burn, burnt
from diinn.runtime import CameraSettings, DiinnError, InputError
from diinn.runtime.sources import (
    Camera,
    CaptureOptions,
    Frame,
    RetryPolicy,
    Source,
    demo,
    open_source,
    public,
    same_device,
)
from diinn.runtime.sources import camera as cameras
from diinn.runtime.sources.base import FAILED, LIVE, RETRYING
from diinn.runtime.sources.capture import CaptureRequest, age_by_driver, unreachable
from diinn.runtime.sources.listing import devices
from diinn.runtime.sources.pixel_formats import folded, to_bgr
from served import Served, children, free_port, open_files, until

pytestmark = pytest.mark.usefixtures("nothing_leaks")
IMPATIENT = RetryPolicy(opening=1.0, stall=0.7, first_pause=0.1, longest_pause=0.3, settled=0.5)


def started(uri: str, **options: object) -> Source:
    source = open_source(uri, CaptureOptions(**{"retry": IMPATIENT, **options}))  # type: ignore[arg-type]
    source.start(lambda: None)
    return source


def next_frame(source: Source, seconds: float = 60.0) -> Frame:
    frames: list[Frame] = []

    def taken() -> bool:
        frame = source.slot.take()
        frames.extend([frame] if frame else [])
        return bool(frames)

    until(taken, seconds)
    return frames[0]


def test_a_worker_says_which_error_of_the_system_ended_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the trace, where its words are to be heard."""
    monkeypatch.setattr(cameras.log, "isEnabledFor", lambda level: True)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))  # its memory for frames cannot grow
    try:
        source = started("demo", retry=RetryPolicy(opening=30.0))
        until(lambda: bool(source.trouble))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    source.close()
    assert source.trouble == "failed with OSError: [Errno 27] File too large"
    assert "in _grow" in capfd.readouterr().err


def test_the_newest_frame_is_there_and_order_never_runs_backwards(mjpeg: Callable[..., Served]) -> None:
    source = started(mjpeg(rate=60).url)
    numbers, sequences = [], []
    for _ in range(8):
        time.sleep(0.12)  # seven frames come meanwhile
        frame = next_frame(source)
        assert time.monotonic() - frame.arrived < 0.5  # a queue of them would be older and older
        numbers.append(burnt(frame.image))
        sequences.append(frame.sequence)
    source.close()
    behind = [number - sequence for number, sequence in zip(numbers, sequences, strict=True)]
    assert behind == sorted(behind)  # what a busy camera left out itself is not counted, and nothing is twice
    assert all(b > a for a, b in itertools.pairwise(numbers))
    assert source.captured >= sequences[-1] + 1
    assert source.slot.replaced > 0


def test_a_camera_that_dies_comes_back_and_counts_on(mjpeg: Callable[..., Served]) -> None:
    camera = mjpeg()
    source = started(camera.url)
    before = next_frame(source)
    camera.kill()
    until(lambda: source.state == RETRYING)
    assert "stopped delivering" in source.trouble or "cannot be opened" in source.trouble
    source.slot.take()
    camera.start()
    after = next_frame(source)
    assert source.state == LIVE
    assert (source.reconnects, source.trouble) == (1, "")
    assert after.sequence > before.sequence
    source.close()


def test_a_camera_that_stalls_is_opened_again(mjpeg: Callable[..., Served]) -> None:
    camera = mjpeg()
    source = started(camera.url)
    next_frame(source)
    camera.freeze()
    until(lambda: "stalled, no frame for 0.7 s" in source.trouble or "stopped delivering" in source.trouble)
    camera.thaw()
    source.slot.take()
    next_frame(source)
    source.close()


def test_a_worker_that_is_killed_or_crashes_is_followed_by_another(mjpeg: Callable[..., Served]) -> None:
    source = started(mjpeg().url)
    next_frame(source)
    for number in (signal.SIGKILL, signal.SIGSEGV):
        reconnects = source.reconnects
        os.kill(children()[0], number)
        until(lambda name=number.name: f"ended by {name}" in source.trouble)
        until(lambda before=reconnects: source.reconnects == before + 1)
    source.close()


def test_a_camera_that_hangs_in_open_ends_at_once(silent: str) -> None:
    source = started(silent, retry=RetryPolicy(opening=60))
    until(children)
    time.sleep(1)  # it is in the middle of it
    before = time.monotonic()
    source.close()
    assert time.monotonic() - before < 1.5


def test_a_camera_that_hangs_in_open_is_tried_again(silent: str) -> None:
    source = started(silent)
    until(lambda: "the server accepts the connection and answers nothing" in source.trouble)
    until(lambda: source.state == RETRYING)
    source.close()


def test_a_worker_that_hangs_in_open_is_ended_and_another_tried(silent: str) -> None:
    source = started(silent, retry=RetryPolicy(opening=2, first_pause=0.1))
    until(children)
    time.sleep(1)  # it is in the middle of it
    os.kill(source.processes[0], signal.SIGSTOP)
    until(lambda: "did not open for 2 s" in source.trouble)
    until(lambda: "answers nothing" in source.trouble)  # so says the next
    source.close()


def test_a_worker_that_does_not_start_is_ended(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cameras, "STARTING_SECONDS", 0.01)
    source = started(silent)
    until(lambda: "its process did not start for 0.01 s" in source.trouble)
    source.close()


def test_a_service_manager_that_tells_all_processes_loses_no_camera() -> None:
    source = started("demo")
    next_frame(source)
    os.kill(source.processes[0], signal.SIGTERM)
    count = source.captured
    until(lambda: source.captured > count + 5)
    assert source.reconnects == 0
    source.close()


def test_a_camera_that_gives_one_frame_and_stalls_is_given_up(mjpeg: Callable[..., Served]) -> None:
    """One frame an opening is no settled camera: the pauses grow and the retries end."""
    served = mjpeg()
    source = started(served.url, retry=RetryPolicy(opening=5, stall=0.6, retries=1, first_pause=0.1, settled=0.5))
    next_frame(source)
    served.freeze()
    until(lambda: source.state == FAILED)
    assert "given up after 2 attempts in a row" in str(source.failure)
    assert not isinstance(source.failure, InputError)  # it has worked: no bad input
    source.close()
    served.thaw()


def jpeg(number: int) -> bytes:
    image = demo.frame(number / 30, (64, 48))
    burn(image, number)
    return cv2.imencode(".jpg", image)[1].tobytes()


LOSSES: dict[str, Callable[[int], bytes]] = {
    "empty": lambda number: b"" if number % 10 == 9 else jpeg(number),
    "no image": lambda number: b"hello" * 50 if number % 10 == 9 else jpeg(number),
    "many in a row": lambda number: b"\xff\xd8\xff\xd9" if number % 20 > 13 else jpeg(number),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_frames_that_cannot_be_decoded_are_left_out_and_counted(
    lossy: Callable[..., str], loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = started(lossy(LOSSES[loss]), retry=RetryPolicy(opening=5, stall=2))
    first = next_frame(source)
    until(lambda: source.captured > first.sequence + 40)
    assert source.reconnects == 0
    assert source.undecodable >= 3
    source.close()
    assert caplog.text.count("a frame could not be decoded; such are left out and counted") == 1


def test_a_camera_of_which_nothing_can_be_decoded_any_more_is_opened_again(lossy: Callable[..., str]) -> None:
    source = started(lossy(lambda number: jpeg(number) if number < 12 else b"hello"))
    until(lambda: source.state == RETRYING)
    assert re.search("nothing that can be decoded|stopped delivering|stalled", source.trouble)
    until(lambda: source.reconnects > 0)
    source.close()


def test_few_frames_a_second_are_no_stall() -> None:
    source = started("demo", rate=0.8)  # IMPATIENT: 0.7 s
    next_frame(source)
    next_frame(source)
    assert source.reconnects == 0
    source.close()


def test_a_module_in_the_current_folder_is_not_a_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('not me')\n")
    monkeypatch.chdir(tmp_path)
    source = started("demo")
    next_frame(source)
    source.close()


def test_files_are_flipped_too(photo_path: Path, photo: np.ndarray) -> None:
    source = started(str(photo_path), flip="vertical")
    np.testing.assert_array_equal(next_frame(source).image, photo[::-1])
    source.close()


def test_retries_end(silent: str) -> None:
    port = int(silent.rstrip("/").rpartition(":")[2])
    source = started(f"http://127.0.0.1:{port}/", retry=RetryPolicy(opening=0.3, retries=2, first_pause=0.05))
    until(lambda: source.state == FAILED)
    assert source.ended
    assert re.search("(for 0.3 s|nothing); given up after 3 attempts in a row: check the address", str(source.failure))
    source.close()


def test_why_a_network_camera_does_not_open_is_said(mjpeg: Callable[..., Served]) -> None:
    served = mjpeg()
    served.kill()
    source = started(served.url)
    until(lambda: "cannot be opened, connection refused" in source.trouble)
    source.close()
    text = unreachable(f"http://127.0.0.1:{free_port()}/", 1.0)
    assert text == ", connection refused"
    assert "no such stream" in unreachable(mjpeg().url, 1.0)
    assert unreachable("rtsp://nowhere.invalid/x", 1.0)
    assert unreachable("http://[", 1.0) == ", its address is none"


def test_pauses_grow_and_differ() -> None:
    retry = RetryPolicy(first_pause=0.5, longest_pause=30)
    for failures, whole in ((1, 0.5), (2, 1.0), (5, 8.0), (50, 30.0), (10**6, 30.0)):
        pauses = {retry.pause(failures) for _ in range(50)}
        assert all(whole / 2 <= pause <= whole for pause in pauses)
        assert len(pauses) > 10


def test_a_frame_size_that_changes_is_the_same_stream(mjpeg: Callable[..., Served]) -> None:
    small = mjpeg("64x48")
    source = started(small.url)
    assert next_frame(source).size == (64, 48)
    small.kill()
    port = small.url.rstrip("/").rpartition(":")[2]
    small._command[small._command.index("--size") + 1] = "320x240"
    assert small._command[small._command.index("--port") + 1] == port
    small.start()
    until(lambda: source.reconnects == 1)
    source.slot.take()
    frame = next_frame(source)
    assert frame.size == (320, 240)
    assert frame.sequence > 0
    source.close()


def test_rate_and_flip_are_kept(mjpeg: Callable[..., Served]) -> None:
    camera = mjpeg(rate=60)
    source = started(camera.url, rate=10.0, flip="rotate-180")
    next_frame(source)
    began, first = time.monotonic(), source.captured
    time.sleep(2)
    assert 8 <= (source.captured - first) / (time.monotonic() - began) <= 12
    upright = next_frame(source).image[::-1, ::-1]
    assert 0 <= burnt(upright) < 2**12
    source.close()


def test_the_demo_keeps_its_rate_and_size() -> None:
    source = started("demo", size=(64, 48), flip="clockwise")
    frame = next_frame(source)
    assert frame.size == (48, 64)
    assert abs(time.time() - frame.captured) < 5
    assert source.rate == 30
    source.close()


def test_opening_and_closing_leaves_nothing(mjpeg: Callable[..., Served]) -> None:
    camera = mjpeg()
    for _ in range(2):
        source = started(camera.url)
        next_frame(source)
        source.close()
    files = open_files()
    for _ in range(5):
        source = started(camera.url)
        source.close()
    assert len(open_files()) == len(files)


BAYER = np.zeros((8, 8), np.uint8)
BAYER[::2, ::2] = 200  # red, where the pattern is RGGB


@pytest.mark.parametrize(
    ("image", "codec", "expected"),
    [
        (np.full((4, 6), 7, np.uint8), None, (7, 7, 7)),
        (np.full((4, 6, 1), 7, np.uint8), None, (7, 7, 7)),
        (np.full((4, 6), 7 << 8, np.uint16), None, (7, 7, 7)),
        (np.full((4, 6, 3), (1 << 8, 2 << 8, 3 << 8), np.uint16), None, (1, 2, 3)),
        (np.full((4, 6, 4), (1, 2, 3, 9), np.uint8), None, (1, 2, 3)),
        (np.full((4, 6, 2), (128, 128), np.uint8), None, (130, 130, 130)),
        (BAYER, "bayer-rggb", (0, 0, 200)),
    ],
)
def test_frames_of_any_kind_become_bgr(image: np.ndarray, codec: str | None, expected: tuple[int, ...]) -> None:
    found = to_bgr(image, codec)
    assert found.dtype == np.uint8
    assert found.shape == (*image.shape[:2], 3)
    np.testing.assert_allclose(found[4 if codec else 2, 4 if codec else 2], expected, atol=1)


def test_raw_bayer_frames_of_v4l2_are_one_row() -> None:
    raw = np.arange(48 * 64, dtype=np.uint8).reshape(1, -1)
    assert folded(raw, (64, 48)).shape == (48, 64)
    np.testing.assert_array_equal(
        to_bgr(folded(raw, (64, 48)), "bayer-rggb"), to_bgr(raw.reshape(48, 64), "bayer-rggb")
    )
    assert folded(BAYER, (64, 48)) is BAYER
    with pytest.raises(DiinnError, match="its raw frames have 3072 bytes, not 64x64"):
        folded(raw, (64, 64))


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (None, "empty"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
        (np.zeros((4, 4), np.float32), r"float32\[4, 4\]"),
        (np.zeros((4, 4, 5), np.uint8), "5 channels"),
        (np.zeros((4,), np.uint8), r"uint8\[4\]"),
    ],
)
def test_other_frames_are_refused_by_name(image: np.ndarray, word: str) -> None:
    with pytest.raises(DiinnError, match=word):
        to_bgr(image, None)


def test_time_stamps_of_the_driver_that_jump_are_not_believed() -> None:
    assert age_by_driver(99.98, 100.0) == pytest.approx(0.02)
    for stamp in (0.0, 100.5, 98.0, 1.7e9, -5.0):
        assert age_by_driver(stamp, 100.0) == 0


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("rtsp://user:pass@cam/live", "rtsp://cam"),
        ("rtsp://admin:p@ss@host:554/s?user=a&password=b", "rtsp://host:554"),
        ("rtsp://admin:pa/s@s@host:554/s", "rtsp://…"),
        ("rtsp://host:554/user=admin_password=tlJwpbo6_channel=1", "rtsp://host:554"),
        ("rtsp://nvr:7447/SECRETTOKEN", "rtsp://nvr:7447"),
        ("http://cam/admin:secret/video.mjpg", "http://cam"),
        ("http://cam?token=secret", "http://cam"),
        ("http://cam;secret", "http://cam"),
        ("http://[fe80::1]:80/video", "http://[fe80::1]:80"),
        ("RTSP://user:pass@cam/live", "RTSP://cam"),
        ("rtsp:/user:pass@cam/live", "rtsp:/cam"),
        ("rtsp://[bad", "rtsp://…"),
        ("rtsp://user:hunter2", "rtsp://…"),
        ("rtsp://user:hunter2:554/live", "rtsp://…"),
        ("rtsp://admin:hunter2 10.0.0.7/live", "rtsp://…"),
        ("gst://rtspsrc location=rtsp://u:p@cam user-pw=x ! decodebin", "gst://rtspsrc"),
        ("rtsp://admin:p@ss/word@host/s", "rtsp://…"),
        ("gst://", "gst://"),
        ("GST://rtspsrc\tuser-pw=secret ! decodebin", "GST://rtspsrc"),
        ("gst://rtspsrc\nlocation=rtsp://u:p@cam\nuser-pw=secret\n! decodebin", "gst://rtspsrc"),
        ("rtsp://admin:pa;ss@host/s", "rtsp://host"),
        ("rtsp//admin:secret@10.0.0.1/s", "10.0.0.1/s"),
        ("rtsp;//admin:secret@10.0.0.1/s", "10.0.0.1/s"),
        ("//admin:secret@10.0.0.1/s", "10.0.0.1/s"),
        (" http://cam/v?token=secret", "http://cam"),
        ("admin:secret@cam:8080/v?token=secret", "cam:8080/v?…"),
        ("photos/img?.png", "photos/img?.png"),
        ("/data/a@b/c.mp4", "/data/a@b/c.mp4"),
        ("file:///data/a@b/c.mp4", "file:///data/a@b/c.mp4"),
        ("v4l2:///dev/video0", "v4l2:///dev/video0"),
    ],
)
def test_secrets_are_not_shown(uri: str, shown: str) -> None:
    assert public(uri) == shown


@pytest.mark.parametrize("uri", ["rtsp://user:hunter2", "rtsp://user:hun#ter2@h/x", "http://h:99x/", "rtsp://"])
def test_an_address_without_a_host_is_refused_at_once(uri: str) -> None:
    with pytest.raises(InputError, match=r"has no host where one belongs: write .*HOST:PORT") as refused:
        open_source(uri)
    assert "hunter" not in str(refused.value)


def test_what_a_password_may_hold() -> None:
    for uri in ("rtsp://admin:pa;ss@h/x", "rtsp://u:a@b@h:554/", "http://[fe80::1%eth0.100]/", "http://h/x?mail=a@b"):
        assert open_source(uri).name == public(uri)


def test_settings_do_not_print_passwords() -> None:
    assert "hunter2" not in repr(CameraSettings("rtsp://u:hunter2@h/x"))
    assert "hunter2" not in repr(open_source("rtsp://u:hunter2@h/x").device)
    assert public(open_source("http://h/x?mail=a@b").name) == "http://…"  # it may be a password's @


def test_what_is_one_device() -> None:
    assert same_device("0") == same_device("/dev/video0") == same_device("v4l2:///dev/video0")
    assert same_device("0") == same_device("V4L2:///dev/video0") == same_device("v4l2://0")
    assert same_device("csi://0") == same_device("CSI://00")
    assert same_device("1") != same_device("0")
    assert same_device("csi://0") == "csi://0"
    assert same_device("demo") is same_device("rtsp://cam/live") is None


def test_devices_are_listed(tmp_path: Path) -> None:
    for node, name, index in (("video2", "Front", "0"), ("video10", "Front", "1")):
        (tmp_path / node).mkdir()
        (tmp_path / node / "name").write_text(name + "\n")
        (tmp_path / node / "index").write_text(index)
    found = list(devices(tmp_path))
    assert [uri for uri, _ in found if uri.startswith("/dev")] == ["/dev/video2", "/dev/video10"]
    assert "further node" in found[1][1]
    assert found[-1][0] == "demo"
    assert [uri for uri, _ in devices(tmp_path / "none")][-1] == "demo"


def test_a_device_survives_json() -> None:
    device = CaptureRequest("rtsp://u:p@h/é", cv2.CAP_FFMPEG, (640, 480), 12.5, "mjpeg", "vertical")
    assert CaptureRequest.from_json(device.to_json()) == device


def test_bad_wishes_name_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'h26"):
        CaptureOptions(codec="h246")
    with pytest.raises(InputError, match="at most 1920x1440"):
        open_source("demo", CaptureOptions(size=(4000, 3000)))


def test_the_uri_is_in_no_command_line(mjpeg: Callable[..., Served]) -> None:
    source = started(mjpeg().url.replace("http://", "http://user:secret@"))
    next_frame(source)
    worker = children()[0]
    assert b"secret" not in Path(f"/proc/{worker}/cmdline").read_bytes()
    assert isinstance(source, Camera)
    assert "secret" not in source.name
    source.close()
