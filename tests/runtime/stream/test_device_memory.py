"""A device whose memory runs out while cameras are served: fewer frames at once, then bicubic, and on."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from diinn.runtime import DiinnError, Stream, SuperResolver
from diinn.runtime.errors import OutOfMemory
from diinn.runtime.geometry.view import View
from diinn.runtime.noise.strength import NONE
from diinn.runtime.sources import demo
from diinn.runtime.stream.batcher import Batcher, _Job
from diinn.runtime.stream.deadline import Load
from diinn.runtime.stream.result import BICUBIC, WHOLE
from diinn.runtime.stream.statistics import Stats
from diinn.runtime.stream.stop import Stop
from streamed import Kept, camera, clip

Log = pytest.LogCaptureFixture
pytestmark = pytest.mark.device
VIEWS = {"full": View.resize((200, 150))}
Auto = lambda: SimpleNamespace(of=lambda frame: NONE)  # noqa: E731


@pytest.fixture
def gpu(trt: pytest.MonkeyPatch, bundle_path: Path) -> SuperResolver:
    """On the device that is played, with TensorRT's double."""
    return SuperResolver.open(bundle_path, backend="tensorrt", check=False)


def short_of(gpu: SuperResolver, frames: int) -> None:
    """From now on the device has no memory for so many frames encoded together, or more."""
    device, pixels = gpu.backend.device, 160 * 120  # type: ignore[attr-defined]
    original = device.allocate

    def allocate(size: int) -> int:
        if size >= frames * pixels * 4 * gpu.bundle.planes:  # what holds the planar frames
            raise OutOfMemory(f"{size} bytes wanted, out of device memory (0 of 1 MiB are free): use fewer cameras")
        return int(original(size))

    device.allocate = allocate


def run(gpu: SuperResolver, cameras: list[str], until: int) -> tuple[Stream, Kept]:
    """Until each camera has given so many results."""
    sink = Kept()
    settings = [camera(uri, name=f"camera{n}") for n, uri in enumerate(cameras)]
    with gpu:
        stream = Stream(settings, gpu, sinks=[sink])
        stream.run(Stop(lambda: all(sum(r.camera == s.name for r in sink.results) >= until for s in settings)))
    return stream, sink


@pytest.mark.parametrize(("cameras", "fits", "without"), [(4, 2, 0), (4, 1, 0), (2, 0, 2)])
@pytest.mark.parametrize("live", [True, False])
def test_the_batch_is_halved(
    gpu: SuperResolver, caplog: Log, cameras: int, fits: int, without: int, live: bool
) -> None:
    """Of live cameras once a batch, so that no batch takes long; of files until each is alone."""
    short_of(gpu, fits + 1)
    lanes = [
        SimpleNamespace(
            name=f"camera{n}", weight=1, denoise=Auto(), source=SimpleNamespace(live=live, ended=False), report=print
        )
        for n in range(cameras)
    ]
    jobs = [
        _Job(lane, SimpleNamespace(image=demo.frame(n, (160, 120))), WHOLE, VIEWS, VIEWS)  # type: ignore[arg-type]
        for n, lane in enumerate(lanes)
    ]
    with gpu:
        batcher = Batcher(gpu, lanes, [], Stats())  # type: ignore[arg-type]
        if without and not live:
            with pytest.raises(DiinnError, match="out of device memory"):
                batcher._in_parts(jobs)
            return
        for _ in range(3):
            batcher._without.clear()
            found, _, _ = batcher._in_parts(jobs)
        assert len(found) == cameras - without
        assert len(batcher._without) == without
        for n, job in enumerate(jobs[: len(found)]):
            alone = gpu.decode(gpu.encode([job.frame.image])[0], list(VIEWS.values()))
            np.testing.assert_array_equal(found[f"camera{n}"][1], alone)
    warnings = [r.message for r in caplog.records if "at once from here on" in r.message]
    assert len(warnings) <= 2
    assert len({r.message for r in caplog.records if "bicubic meanwhile" in r.message}) == without


def jobs_of(cameras: int) -> tuple[list[SimpleNamespace], list[_Job]]:
    lanes = [
        SimpleNamespace(
            name=f"camera{n}", weight=1, denoise=Auto(), source=SimpleNamespace(live=True, ended=False), report=print
        )
        for n in range(cameras)
    ]
    return lanes, [
        _Job(lane, SimpleNamespace(image=demo.frame(n, (160, 120))), WHOLE, VIEWS, VIEWS)  # type: ignore[arg-type]
        for n, lane in enumerate(lanes)
    ]


def test_the_batch_of_onnx_runtime_on_a_gpu_is_halved(
    bundle_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Log
) -> None:
    """It takes any number of frames at once, until its memory is out."""
    from diinn.runtime.util.onnx_runtime import ort

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def run(self, outputs: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            if len(feed.get("frame", ())) > 2:
                raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer")
            return super().run(outputs, feed)  # type: ignore[no-any-return]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    lanes, jobs = jobs_of(4)
    with SuperResolver.open(bundle_path, backend="onnxruntime", provider="cpu", check=False) as resolver:
        monkeypatch.setattr(resolver.backend, "max_batch", lambda size: None)
        batcher = Batcher(resolver, lanes, [], Stats())  # type: ignore[arg-type]
        found, _, _ = batcher._in_parts(jobs)
    assert len(found) == 4
    assert not batcher._without
    assert [r.message for r in caplog.records if "encoding at most 2 at once" in r.message]


def test_a_build_without_memory_is_not_tried_at_every_frame(
    gpu: SuperResolver, trt: pytest.MonkeyPatch, caplog: Log
) -> None:
    from diinn.runtime.engines import build, loader

    trt.setenv("DIINN_DOUBLE_FAIL", "build")
    tried, original = [], build.build
    trt.setattr(build, "build", lambda *args: (tried.append(args[1].profile.most["frame"]), original(*args))[1])
    frame = np.zeros((490, 20, 3), np.uint8)
    planes = gpu.bundle.planes
    with gpu:
        for _ in range(3):
            with pytest.raises(OutOfMemory, match="could not build the engine"):
                gpu.resize(frame, (20, 490))
        assert tried == [(1, planes, 490, 640), (1, planes, 490, 20)]  # for all sizes, and for this alone
        trt.setattr(loader, "RETRY", 0.0)
        gpu.backend.encoder._short.clear()  # type: ignore[attr-defined]
        for _ in range(2):
            with pytest.raises(OutOfMemory):
                gpu.resize(frame, (20, 490))
        assert len(tried) == 6
        assert sum("is not for 20x490 frames" in r.message for r in caplog.records if r.levelname == "WARNING") == 1
        trt.setenv("DIINN_DOUBLE_FAIL", "")
        assert gpu.resize(frame, (20, 490)).shape == (490, 20, 3)


def test_what_went_without_the_network_is_not_learnt(gpu: SuperResolver) -> None:
    lanes, jobs = jobs_of(2)
    with gpu:
        batcher = Batcher(gpu, lanes, [], Stats(), deadline=10.0)  # type: ignore[arg-type]
        learnt: list[list[str]] = []
        assert batcher.deadline is not None
        batcher.deadline.learn = lambda loads, *_: learnt.append([load.camera for load in loads])  # type: ignore[method-assign]
        loads = [Load(lane.name, 160 * 120, 30000, 7500) for lane in lanes]
        batcher._planned = lambda taken: (jobs, loads, dict.fromkeys(["camera0", "camera1"], WHOLE))  # type: ignore[method-assign]
        computed = batcher._computed

        def short(part: list[_Job]) -> object:
            if any(job.lane.name == "camera1" for job in part):
                raise OutOfMemory("out of device memory")
            return computed(part)

        batcher._computed = short  # type: ignore[method-assign,assignment]
        batcher._hand_on = lambda *_: None  # type: ignore[method-assign]
        for lane in lanes:
            lane.zooms = {}
        batcher._process([])
    assert learnt == [["camera0"]]


def test_what_does_not_fit_alone_is_bicubic_and_goes_on(gpu: SuperResolver, caplog: Log) -> None:
    short_of(gpu, 1)
    stream, sink = run(gpu, ["demo"] * 2, 6)
    assert {result.camera for result in sink.results} == {"camera0", "camera1"}
    assert {result.quality for result in sink.results} == {BICUBIC}
    assert all(result.image.shape == (240, 320, 3) and np.ptp(result.image) > 50 for result in sink.results)
    warnings = [r.message for r in caplog.records if "are bicubic meanwhile" in r.message]
    assert len(warnings) == 2  # once for each
    assert all(c["degraded"][BICUBIC] for c in stream.snapshot(final=True)["cameras"].values())


def test_memory_that_comes_back_is_used(gpu: SuperResolver) -> None:
    device = gpu.backend.device  # type: ignore[attr-defined]
    original = device.allocate
    short_of(gpu, 1)
    sink = Kept()
    with gpu:
        stream = Stream([camera("demo")], gpu, sinks=[sink])

        def enough() -> bool:
            if len(sink.results) >= 3:
                device.allocate = original
            return any(result.quality == WHOLE for result in sink.results)

        stream.run(Stop(enough))
    assert [sink.results[0].quality, sink.results[-1].quality] == [BICUBIC, WHOLE]


def test_a_file_ends_with_the_reason(gpu: SuperResolver, tmp_path: Path) -> None:
    short_of(gpu, 1)
    with pytest.raises(DiinnError, match="out of device memory"):
        run(gpu, [f"file://{clip(tmp_path / 'clip.avi', 5)}"], 5)
