"""Two RTSP cameras by a real server, one of which is killed and comes back."""

import json
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from diinn.benchmarks.mjpeg_server import burnt
from diinn.runtime import CameraSettings, Stream, SuperResolver
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.sources import CaptureOptions, RetryPolicy
from diinn.runtime.sources.base import LIVE, RETRYING
from served import Served, until

FULL = {"full": ViewSpec(dsize=(640, 480))}
LITTLE = {"full": ViewSpec(dsize=(320, 240))}
PATIENCE = RetryPolicy(stall=2.0, first_pause=0.1, longest_pause=0.5)


@pytest.mark.usefixtures("nothing_leaks")
@pytest.mark.parametrize("codec", ["jpeg", "h264"])
def test_one_is_killed_and_comes_back_and_the_other_loses_nothing(
    rtsp: Callable[..., Served], tiny: SuperResolver, codec: str
) -> None:
    rate = 6  # few enough for a busy machine to process each
    servers = {name: rtsp(codec, rate) for name in ("steady", "shaky")}
    cameras = [CameraSettings(s.url, name, CaptureOptions(retry=PATIENCE), LITTLE) for name, s in servers.items()]
    seen: dict[str, list[tuple[int, int]]] = defaultdict(list)
    stream = Stream(cameras, tiny, on_result=lambda r: seen[r.camera].append((r.sequence, burnt(r.frame.image))))
    stream.start()
    until(lambda: min(len(seen["steady"]), len(seen["shaky"])) > 5)
    steady, shaky = stream.sources
    first_dropped = steady.captured - len(seen["steady"])
    began = len(seen["steady"])
    servers["shaky"].kill()
    until(lambda: shaky.state == RETRYING)
    gone = len(seen["shaky"])
    until(lambda: len(seen["steady"]) > began + 3 * rate)
    servers["shaky"].start()
    until(lambda: shaky.state == LIVE and len(seen["shaky"]) > gone + 5)
    stream.close()
    assert shaky.reconnects == 1
    assert steady.reconnects == 0
    sequences = [sequence for sequence, _ in seen["steady"][began:]]
    dropped = steady.captured - len(seen["steady"]) - first_dropped
    assert dropped <= max(3, len(sequences) // 5)  # a busy machine may overtake itself
    assert all(b - a <= rate // 2 for a, b in pairwise(sequences))  # no hiccup of a second
    for pairs in seen.values():
        assert all(b > a for a, b in pairwise(sequence for sequence, _ in pairs))
    numbers = [number for _, number in seen["steady"]]
    assert all(b > a for a, b in pairwise(numbers))


def test_age_stays_bounded_with_a_model_slower_than_the_camera(rtsp: Callable[..., Served]) -> None:
    ages: list[float] = []
    with SuperResolver.open("small") as resolver:
        stream = Stream([CameraSettings(rtsp("jpeg", 40).url, views=FULL)], resolver)
        for result in stream:
            ages.append(result.age)
            if len(ages) == 60:
                break
    slowest = max(stream.stats._times["total"]) / 1e3
    assert np.quantile(ages, 0.99) <= 2 * slowest + 1 / 40 + 0.1  # what two cores need to hand over


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_within_two_seconds_while_a_camera_hangs_in_open(
    silent: str, bundle_path: Path, tmp_path: Path, number: int
) -> None:
    stats = tmp_path / "stats.jsonl"
    command = [
        *(sys.executable, "-m", "diinn.runtime.cli.run", "--model", str(bundle_path), "--camera", "demo"),
        *("--camera", silent.replace("http://", "http://user:secret@"), "--input-size", "64x48"),
        *("--output", str(tmp_path), "--stats", str(stats)),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "demo: 64x48" in process.stdout.readline()
    time.sleep(2.5)
    began = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 2
    assert process.returncode == 128 + number
    lines = [json.loads(line) for line in stats.read_text().splitlines()]
    assert [line["type"] for line in lines[-2:]] == ["second", "summary"]
    hanging = next(camera for name, camera in lines[-1]["cameras"].items() if name != "demo")
    assert hanging["state"] == "opening"
    assert "secret" not in out + err + stats.read_text()
    assert (tmp_path / "demo.mp4").stat().st_size > 0
