"""Pipelines of GStreamer: what it says of a wrong one, and cameras where OpenCV has it (``make test-system``)."""

from pathlib import Path

import numpy as np
import pytest
from diinn.runtime import SourceError, Stream, SuperResolver
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.sources import CaptureOptions, RetryPolicy
from diinn.runtime.sources.uri import has_gstreamer
from diinn.runtime.util import gstreamer
from served import until
from streamed import Kept, camera, run_for

SINK = "videoconvert ! appsink"
library = pytest.mark.skipif(gstreamer._library() is None, reason="no libgstreamer: apt-get install libgstreamer1.0-0")
built_in = pytest.mark.skipif(not has_gstreamer(), reason="this OpenCV has no GStreamer: make test-system has one")
HERE = {"views": {"full": ViewSpec(scale=1.0)}, "denoise": 0}


@library
@pytest.mark.parametrize(
    ("pipeline", "why"),
    [
        ("nosuchelement", 'no element "nosuchelement"'),
        ("rtspsrc user-pw=my secret", "a word where none belongs: put values that hold blanks into quotes"),
        ("fakesrc ! nosuchelement", 'no element "nosuchelement"'),
        ("fakesrc !", "syntax error"),
        ("", "syntax error"),
        ("fakesrc foo=3", 'no property "foo" in element "fakesrc"'),
        ("fakesrc num-buffers=many", 'could not set property "num-buffers" in element "fakesrc"'),
    ],
)
def test_a_mistake_is_named(pipeline: str, why: str) -> None:
    assert gstreamer.parse_error(f"{pipeline} ! fakesink") == why
    assert gstreamer.start_error(f"{pipeline} ! fakesink", 1.0) == why


@library
def test_what_starts_has_no_mistake_and_what_does_not_says_why() -> None:
    assert gstreamer.parse_error("fakesrc num-buffers=2 ! fakesink") == ""
    assert gstreamer.start_error("fakesrc num-buffers=2 ! fakesink", 0.2) == ""
    assert gstreamer.parse_error("filesrc location=/no/such ! fakesink") == ""
    assert gstreamer.start_error("filesrc location=/no/such ! fakesink", 5.0) == "Resource not found"


@built_in
@pytest.mark.usefixtures("nothing_leaks")
@pytest.mark.parametrize(
    "pipeline",
    [
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48",
        f"videotestsrc is-live=true ! video/x-raw,width=64,height=48 ! {SINK}",
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,format=GRAY8",
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,format=NV12 ! appsink drop=true",
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,format=UYVY ! appsink",
        "videotestsrc is-live=true ! video/x-raw,width=64,height=48,format=RGB ! appsink sync=false",
    ],
)
def test_a_pipeline_with_and_without_its_sink(tiny: SuperResolver, pipeline: str) -> None:
    kept = Kept()
    run_for(1, Stream([camera(f"gst://{pipeline}", **HERE)], tiny, sinks=[kept]), lambda: len(kept.results) > 3)
    assert {result.image.shape for result in kept.results} == {(48, 64, 3)}
    if "GRAY8" not in pipeline:  # the first bars of the test picture: white, yellow, cyan
        np.testing.assert_allclose(
            kept.results[0].frame.image[10, 4:28:9], [[255] * 3, [0, 255, 255], [255, 255, 0]], atol=8
        )
    assert len(kept.results) > 3


@built_in
@pytest.mark.usefixtures("nothing_leaks")
def test_a_pipeline_that_ends_is_started_again(tiny: SuperResolver) -> None:
    short = "videotestsrc is-live=true num-buffers=8 ! video/x-raw,width=64,height=48"
    retry = RetryPolicy(first_pause=0.1, longest_pause=0.2)
    stream = Stream([camera(f"gst://{short}", capture=CaptureOptions(retry=retry), **HERE)], tiny, sinks=[Kept()])
    stream.start()
    until(lambda: stream.sources[0].reconnects > 1, 60)
    stream.close()


@built_in
@pytest.mark.usefixtures("nothing_leaks")
@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("gst://videotestsrc ! nosuchelement", 'cannot be opened, no element "nosuchelement": check the pipeline'),
        (f"gst://nosuchelement ! {SINK}", 'cannot be opened, no element "nosuchelement": check the pipeline'),
        ("gst://videotestsrc !", "cannot be opened, syntax error: check the pipeline"),
        ("gst://filesrc location=/no/such ! decodebin", "cannot be opened, Resource not found: check the pipeline"),
        ("gst://v4l2src device=/dev/video77", "cannot be opened, Cannot identify device '/dev/video77'"),
        (f"gst://videotestsrc ! jpegenc ! {SINK}", "could not link jpegenc"),
        ("gst://filesrc location=/tmp/\udcff.mp4 ! decodebin", "cannot be opened"),
        ("csi://0", 'cannot be opened, no element "nvarguscamerasrc": check the pipeline'),
    ],
)
def test_a_pipeline_that_cannot_be_opened_says_why(tiny: SuperResolver, uri: str, why: str) -> None:
    settings = camera(uri, capture=CaptureOptions(retry=RetryPolicy(retries=0)), **HERE)
    with pytest.raises(SourceError) as caught:
        run_for(40, Stream([settings], tiny, sinks=[Kept()], wait_for_cameras=False))
    assert why in str(caught.value)


@built_in
@pytest.mark.usefixtures("nothing_leaks")
def test_the_pipeline_is_to_be_checked_whatever_patience_is_asked_for(tiny: SuperResolver) -> None:
    with pytest.raises(SourceError, match=r"no element \"nosuch\": check the pipeline, .*; --retries N waits for it"):
        run_for(40, Stream([camera("gst://fakesrc ! nosuch", **HERE)], tiny, sinks=[Kept()], wait_for_cameras=False))


@pytest.mark.usefixtures("nothing_leaks")
def test_a_path_that_is_no_video_device(tiny: SuperResolver, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    settings = camera(f"v4l2://{tmp_path / 'plain'}", capture=CaptureOptions(retry=RetryPolicy(retries=0)), **HERE)
    with pytest.raises(SourceError, match="plain is no video device: check that it is connected"):
        run_for(40, Stream([settings], tiny, sinks=[Kept()], wait_for_cameras=False))
