"""What the tests of streams share: cameras with a view, a sink that remembers, films with numbers."""

import time
from collections.abc import Callable
from pathlib import Path

import cv2
from diinn.benchmarks.mjpeg_server import burn
from diinn.runtime import CameraSettings, Stream
from diinn.runtime.geometry.view_spec import ViewSpec
from diinn.runtime.sources import demo
from diinn.runtime.stream.result import Result
from diinn.runtime.stream.sink import Sink
from diinn.runtime.stream.stop import Stop

FULL = {"full": ViewSpec(dsize=(320, 240))}


def camera(uri: str, **options: object) -> CameraSettings:
    fields = {"uri": uri, "views": FULL, **options}
    return CameraSettings(**fields)  # type: ignore[arg-type]


class Kept(Sink):
    """Keeps what it is given, and may take its time."""

    where = "kept"

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.results: list[Result] = []
        self.ages: list[float] = []

    def write(self, result: Result) -> None:
        self.ages.append(result.age)
        self.results.append(result)
        time.sleep(self.seconds)


def run_for(seconds: float, stream: Stream, enough: Callable[[], bool] = lambda: True) -> None:
    """Runs it for ``seconds``, and on a busy machine up to a minute longer until there is ``enough``."""
    end = time.monotonic() + seconds
    stream.run(Stop(lambda: time.monotonic() > end and (enough() or time.monotonic() > end + 60)))


def processed(stream: Stream) -> list[int]:
    return [camera["processed"] for camera in stream.snapshot()["cameras"].values()]


def clip(path: Path, frames: int) -> Path:
    """A film whose frames bear their numbers."""
    return video(path, frames, 10, (160, 120), numbered=True)


def video(
    path: Path, frames: int, rate: float = 12.5, size: tuple[int, int] = (32, 24), *, numbered: bool = False
) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), rate, size)
    for number in range(frames):
        image = demo.frame(number / 10, size)
        if numbered:
            burn(image, number)
        writer.write(image)
    writer.release()
    return path


def count_frames(path: Path) -> tuple[int, float, tuple[int, int]]:
    capture = cv2.VideoCapture(str(path))
    count = 0
    shape = (0, 0)
    while True:
        done, image = capture.read()
        if not done:
            return count, capture.get(cv2.CAP_PROP_FPS), shape
        count, shape = count + 1, (image.shape[1], image.shape[0])
