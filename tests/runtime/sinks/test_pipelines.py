"""Frames into GStreamer pipelines: files are read back, a stream is received; what fails and what stalls."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from diinn.benchmarks.mjpeg_server import burn, burnt
from diinn.runtime import DiinnError, InputError, Stream, SuperResolver, sources
from diinn.runtime.geometry.view import View
from diinn.runtime.sinks import Streams, open_sinks
from diinn.runtime.sinks import gstreamer as sink_module
from diinn.runtime.sinks.gstreamer import GStreamer
from diinn.runtime.sources import demo
from diinn.runtime.stream.result import WHOLE, Result
from diinn.runtime.stream.stop import Stop
from diinn.runtime.util import gstreamer
from served import until
from streamed import Kept, camera, clip, run_for

PACKAGES = "gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-ugly"
USED = "appsrc ! videoconvert ! x264enc ! rtph264pay ! fakesink matroskamux ! mp4mux ! jpegenc ! pngenc ! multifilesink"
MISSING = gstreamer.parse_error(USED) if gstreamer._library() and gstreamer._app_library() else "no GStreamer"
needs = pytest.mark.skipif(bool(re.match("no ", MISSING)), reason=f"{MISSING}: apt-get install {PACKAGES}")
RATE = 12.5


def picture(number: int, size: tuple[int, int] = (64, 48)) -> np.ndarray:
    image = demo.frame(number / 10, size)
    burn(image, number)
    return image


def result(image: np.ndarray, sequence: int = 0, arrived: float = 0.0) -> Result:
    frame = sources.Frame(image, "cam", sequence, 0.0, arrived)
    return Result(image, "cam", "full", frame, WHOLE, View.resize((image.shape[1], image.shape[0])), arrived)


def write(description: str, images: list[np.ndarray], arrivals: list[float] | None = None) -> None:
    sink = GStreamer("gst://…", description, lambda: RATE, live=arrivals is not None)
    try:
        for number, image in enumerate(images):
            sink.write(result(image, number, arrivals[number] if arrivals else 0.0))
    except DiinnError:
        with contextlib.suppress(DiinnError):
            sink.close(failed=True)
        raise
    sink.close()


def read(path: Path) -> tuple[list[np.ndarray], list[float]]:
    """The frames of a video and their times in seconds, by OpenCV; 4.6 knows none of the last where B-frames are."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    images, times = [], []
    while True:
        done, image = capture.read()
        if not done:
            return images, times
        images.append(image)
        times.append(capture.get(cv2.CAP_PROP_POS_MSEC) / 1e3)


@needs
@pytest.mark.usefixtures("nothing_leaks")
@pytest.mark.parametrize("size", [(64, 48), (66, 48), (63, 47)])
def test_pixels_arrive_as_they_are(tmp_path: Path, size: tuple[int, int]) -> None:
    """Raw, so that nothing is lost: rows that are no multiple of 4 bytes long, an odd row and column."""
    images = [picture(number, size) for number in range(5)]
    write(f"video/x-raw,format=BGR ! filesink location={tmp_path / 'raw'}", images)
    width, height = size[0] + size[0] % 2, size[1] + size[1] % 2
    stride = -(-3 * width // 4) * 4
    got = np.fromfile(tmp_path / "raw", np.uint8).reshape(5, height, stride)[:, :, : 3 * width]
    wanted = [np.pad(image, ((0, size[1] % 2), (0, size[0] % 2), (0, 0)), mode="edge") for image in images]
    np.testing.assert_array_equal(got.reshape(5, height, width, 3), wanted)


@needs
@pytest.mark.usefixtures("nothing_leaks")
@pytest.mark.parametrize(
    ("pipeline", "name"),
    [
        ("x264enc bframes=0 ! matroskamux ! filesink location={}", "a.mkv"),
        ("videoconvert ! video/x-raw,format=I420 ! x264enc tune=zerolatency ! mp4mux ! filesink location={}", "a.mp4"),
        ("appsrc is-live=true ! x264enc bframes=0 ! h264parse ! qtmux ! filesink location={}", "a.mov"),
    ],
)
def test_a_film_is_read_back_whole(tmp_path: Path, pipeline: str, name: str) -> None:
    """MP4 and QuickTime can be read only if the pipeline was ended in order."""
    images = [picture(number, (320, 240)) for number in range(30)]
    write(pipeline.format(tmp_path / name), images)
    got, times = read(tmp_path / name)
    assert [burnt(image) for image in got] == [*range(30)]
    assert np.mean(np.abs(np.subtract(got, images, dtype=np.int16))) < 4
    np.testing.assert_allclose(np.diff(times), 1 / RATE, atol=2e-3)


@needs
def test_frames_of_a_camera_bear_their_times(tmp_path: Path) -> None:
    arrivals = [7.0, 7.05, 7.3, 7.31, 9.0]
    write(
        f"video/x-raw,format=I420 ! jpegenc ! matroskamux ! filesink location={tmp_path / 'a.mkv'}",
        [picture(n) for n in range(5)],
        arrivals,
    )
    np.testing.assert_allclose(read(tmp_path / "a.mkv")[1], np.subtract(arrivals, 7.0), atol=2e-3)


@needs
def test_a_view_that_changes_its_size_is_fitted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = [(320, 240), (160, 120), (320, 240)]
    write(f"jpegenc ! multifilesink location={tmp_path}/%d.jpg", [picture(5, size) for size in sizes])
    got = [cv2.imread(str(tmp_path / f"{number}.jpg")) for number in range(3)]
    assert {image.shape for image in got} == {(240, 320, 3)}
    assert caplog.text.count("changed its size to 160x120: fitted to the 320x240 of gst://") == 1


@needs
@pytest.mark.usefixtures("nothing_leaks")
def test_a_stream_is_received(tmp_path: Path, tiny: SuperResolver) -> None:
    """RTP over UDP on the loopback, from a camera, received by a second pipeline."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    caps = "application/x-rtp,media=video,clock-rate=90000,encoding-name=JPEG,payload=26"
    receiver = (
        f"udpsrc port={port} caps={caps} ! rtpjpegdepay ! jpegdec ! videoconvert ! pngenc ! "
        f"identity error-after=8 ! multifilesink location={tmp_path}/%03d.png"
    )
    errors: list[str] = []
    thread = threading.Thread(target=lambda: errors.append(gstreamer.start_error(receiver, 90)))
    thread.start()
    streams = Streams([(sources.open_source("demo"), ["full"])])
    uri = f"gst://video/x-raw,format=I420 ! jpegenc quality=95 ! rtpjpegpay ! udpsink host=127.0.0.1 port={port}"
    kept = Kept()
    (sink, _), *_ = open_sinks([uri], streams, headless=True, stop=Stop())
    run_for(1, Stream([camera("demo")], tiny, sinks=[sink, kept]), lambda: not thread.is_alive())
    thread.join()
    assert errors == ["Failed after iterations as requested"]  # it has received so many
    got = cv2.imread(str(tmp_path / "003.png"))
    assert min(np.mean(np.abs(np.subtract(got, r.image, dtype=np.int16))) for r in kept.results) < 4


@needs
@pytest.mark.usefixtures("nothing_leaks")
@pytest.mark.parametrize(
    ("pipeline", "kind", "why"),
    [
        ("nosuchelement ! fakesink", InputError, 'no element "nosuchelement"'),
        ("x264enc !", InputError, "syntax error"),
        ("x264enc bitrate=many ! fakesink", InputError, 'could not set property "bitrate" in element "x264enc"'),
        ("rtph264pay ! fakesink", InputError, "could not link videoconvert to rtph264pay"),
        ("filesink location=/no/such/file", InputError, 'Could not open file "/no/such/file" for writing'),
        ("filesink location=/dev/full", DiinnError, "No space left on the resource"),
        ("video/x-raw,width=1 ! fakesink", DiinnError, "Internal data stream error (not-negotiated)"),
        ("identity error-after=2 ! fakesink", DiinnError, "Failed after iterations as requested"),
        ("identity eos-after=2 ! fakesink", DiinnError, "ended by itself"),
    ],
)
def test_what_fails_says_why(pipeline: str, kind: type[DiinnError], why: str) -> None:
    with pytest.raises(DiinnError) as caught:
        write(pipeline, [picture(number) for number in range(500)])
    assert type(caught.value) is kind
    text = re.sub(r"(?<=[a-z])\d+(?=[\": ])", "", str(caught.value))  # elements are numbered
    assert text.startswith(f"pipeline gst://…: {why}")
    assert text.endswith(
        "ended by itself" if why == "ended by itself" else ": check the pipeline, as gst-launch-1.0 runs it alone"
    )


@needs
def test_an_appsrc_of_ones_own_keeps_its_properties_but_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="gst:// with a name for its appsrc: leave name= out"):
        write("appsrc name=frames ! fakesink", [picture(0)])
    with pytest.raises(DiinnError, match="ended by itself"):
        write("appsrc num-buffers=2 ! fakesink", [picture(number) for number in range(500)])


@needs
def test_what_fails_at_the_end_says_why() -> None:
    sink = GStreamer("gst://…", "identity error-after=3 ! fakesink", lambda: RATE, live=False)
    for _ in range(3):
        sink.write(result(picture(0)))
    with pytest.raises(DiinnError, match="Failed after iterations"):
        sink.close()
    sink.close()  # a second time does nothing


@needs
@pytest.mark.parametrize(
    ("pipeline", "frames", "why"),
    [
        ("identity sleep-time=5000000 ! fakesink", 9, "took no frame for 0.3 s"),
        ("identity sleep-time=5000000 ! fakesink", 1, "did not end within 0.3 s"),
        ("filesink location=fifo", 1, "did not start within 0.3 s"),
    ],
)
def test_what_stalls_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipeline: str, frames: int, why: str
) -> None:
    monkeypatch.setattr(sink_module, "STALLED_SECONDS", 0.3)
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")  # without a reader
    began = time.monotonic()
    with pytest.raises(DiinnError, match=why):
        write(pipeline, [picture(0)] * frames)
    assert time.monotonic() - began < 4
    os.close(os.open("fifo", os.O_RDONLY | os.O_NONBLOCK))
    until(lambda: not [t for t in threading.enumerate() if t.name == "diinn-gstreamer"])


@needs
@pytest.mark.usefixtures("nothing_leaks")
def test_each_stream_has_a_pipeline(tmp_path: Path, run) -> None:
    film = clip(tmp_path / "front.avi", 12)
    out = "gst://x264enc bframes=0 ! matroskamux ! filesink location={stream}.{number}.mkv"
    views = ("--view", "a=full:320x240", "--view", "b=full:160x120")
    code, said, err = run("--input", film, *views, "--output", out)
    assert (code, err) == (0, ""), err
    assert "output: gst://x264enc of front.avi-a, gst://x264enc of front.avi-b" in said
    for name, shape in (("front.avi-a.0.mkv", (240, 320, 3)), ("front.avi-b.1.mkv", (120, 160, 3))):
        images, times = read(tmp_path / name)
        assert {image.shape for image in images} == {shape}
        np.testing.assert_allclose(times, np.arange(12) / 10, atol=2e-3)  # none of a file is dropped


@needs
def test_a_pipeline_goes_on_where_a_camera_fails(tmp_path: Path, run) -> None:
    out = f"gst://x264enc ! mp4mux ! filesink location={tmp_path}/{{stream}}.mp4"
    args = ("--camera", "demo", "--camera", "99", "--retries", "0", "--duration", "2")
    code, _, err = run(*args, "--output", out)
    assert code == 1
    assert "there is no /dev/video99" in err
    assert len(read(tmp_path / "demo.mp4")[0]) > 2


@needs
@pytest.mark.parametrize(
    ("pipeline", "whole"),
    [("mp4mux ! filesink location=a.mp4", True), ("identity sleep-time=60000000 ! fakesink", False)],
)
def test_an_interrupted_run_finishes_its_file_and_hangs_nowhere(
    tmp_path: Path, bundle_path: Path, pipeline: str, *, whole: bool
) -> None:
    command = [sys.executable, "-m", "diinn.runtime.cli.run", "--camera", "demo", "--model", str(bundle_path)]
    process = subprocess.Popen(
        [*command, "--stats", "stats.jsonl", "--output", f"gst://x264enc tune=zerolatency ! {pipeline}"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = tmp_path / "stats.jsonl"
    until(lambda: lines.exists() and re.search(r'"outputs": \[{[^}]*"written": [2-9]', lines.read_text()))
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=25)
    assert process.returncode == 130
    assert "Traceback" not in err
    if whole:
        assert len(read(tmp_path / "a.mp4")[0]) > 2
    left = "output gst://x264enc did not finish in time and was left: what it wrote may be cut short" in err
    assert left == (not whole)


def test_without_gstreamer_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer, "_app_library", lambda: None)
    with pytest.raises(InputError, match="GStreamer is not installed: apt-get install"):
        GStreamer("gst://x264enc", "x264enc ! fakesink", lambda: RATE, live=True)


def test_what_may_be_secret_is_not_shown() -> None:
    streams = Streams([(sources.open_source("demo"), ["full"])])
    uri = "gst://fakesink name=x264 ! rtspclientsink location=rtsp://u:secret@h/secret"
    try:
        (sink, _), *_ = open_sinks([uri], streams, headless=True, stop=Stop())
        shown = sink.where
    except InputError as error:
        shown = str(error)
    assert "gst://fakesink" in shown or "GStreamer is not installed" in shown
    assert "secret" not in shown
