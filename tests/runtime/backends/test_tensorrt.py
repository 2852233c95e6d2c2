"""The TensorRT backend's own work, with TensorRT and the device played by ``tests/fakes``: buffers, chunks, batches,
gather, verdicts. The kernels are the real sources, compiled for the host."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import play, ramp
from diinn.export import writer
from diinn.runtime import DiinnError, InputError, SuperResolver, backends
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.engines import build, profiles, verify
from diinn.runtime.engines import cache as cache_module
from diinn.runtime.engines.cache import Cache, Key
from diinn.runtime.geometry.view import View
from diinn.runtime.gpu import memory
from diinn.runtime.noise.strength import Strength
from diinn.train import checkpoint
from diinn.train.config import parse
from diinn.train.model import ModelConfig, SuperResolutionModel

DECODERS = {
    "diinn": {"name": "diinn", "depth": 2, "width": 12},
    "diinn-e": {"name": "diinn", "depth": 2, "width": 12, "init_q": True},
    "liif": {"name": "liif", "depth": 2, "width": 12},
    "metasr": {"name": "metasr", "width": 12},
}
TOLD = [Strength(), Strength(20, 50), Strength(5), Strength(0, 30)]  # cameras of one batch may differ
Trt, Log = pytest.MonkeyPatch, pytest.LogCaptureFixture
pytestmark = pytest.mark.device


@pytest.fixture(scope="module", params=DECODERS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    values = {
        "encoder": {"name": "compact", "channels": 8, "blocks": 1},
        "decoder": DECODERS[request.param],
        "dial": {},
    }
    path = tmp_path_factory.mktemp(request.param) / "model.pth"
    checkpoint.save(path, checkpoint.Checkpoint(SuperResolutionModel(parse(ModelConfig, values, "test")), (1.0, 4.0)))
    return writer.export(path).path


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-5), ("fp16", 5e-3)])
def test_every_decoder_is_what_it_is_on_the_cpu(trt: Trt, bundle: Path, precision: str, tolerance: float) -> None:
    frames = [ramp(21, 33), ramp(21, 33)[::-1].copy(), ramp(16, 17), ramp(21, 33)[:, ::-1].copy()]
    views = [View.resize((70, 51)), View.roi((2.5, 3.25, 11.5, 10), (33, 64)), View.resize((33, 30))]
    with SuperResolver.open(bundle, backend="onnxruntime") as cpu:
        wanted = [cpu.decode(e, views, dtype=np.float32) for e in cpu.encode(frames, TOLD)]
    with SuperResolver.open(bundle, backend="tensorrt", precision=precision, chunk=1000) as gpu:
        encoded = gpu.encode(frames, TOLD)  # all are held while others are decoded: no buffer may be used twice
        found = [gpu.decode(e, views, dtype=np.float32) for e in encoded]
        assert f"tensorrt 10.13.0.35 ({gpu.backend.device.name}" in gpu.backend.describe()  # type: ignore[attr-defined]
        for a, b in zip(wanted, found, strict=True):
            for one, two in zip(a, b, strict=True):
                np.testing.assert_allclose(two, one, atol=tolerance)


def test_bands_and_maps_too(trt: Trt, bundle: Path) -> None:
    frame = ramp(490, 21)  # above what the engine is for: one for bands of it is opened
    with SuperResolver.open(bundle, backend="onnxruntime") as cpu:
        wanted = cpu.resize(frame, (50, 997), dtype=np.float32)
        budget = cpu.bundle.workspace * 21 * (4 * cpu.bundle.radius + 1)
        remaps = len(cpu.bundle.layout.shifts) == 1 and not cpu.bundle.layout.corner
        x, y = np.meshgrid(np.linspace(-3, 22, 50, dtype=np.float32), np.linspace(0, 489, 40, dtype=np.float32))
        mapped = cpu.remap(frame, x, y, dtype=np.float32) if remaps else None
    with SuperResolver.open(bundle, backend="tensorrt", precision="fp32", memory_budget=budget) as gpu:
        assert gpu.encode([frame])[0].maps is None
        np.testing.assert_allclose(gpu.resize(frame, (50, 997), dtype=np.float32), wanted, atol=2e-5)
        if mapped is not None:
            np.testing.assert_allclose(gpu.remap(frame, x, y, dtype=np.float32), mapped, atol=2e-5)


@pytest.mark.parametrize("backend", ["tensorrt", "cuda"])
def test_bands_want_one_engine_and_an_engine_for_the_frame_wants_no_bands(
    trt: Trt, bundle_path: Path, backend: str
) -> None:
    frame = ramp(1400, 20)
    with SuperResolver.open(bundle_path, backend="onnxruntime") as cpu:
        wanted = cpu.resize(frame, (30, 1800), dtype=np.float32)
        workspace = cpu.bundle.workspace
    with SuperResolver.open(bundle_path, backend=backend, memory_budget=workspace * 20 * 730) as gpu:
        np.testing.assert_allclose(gpu.resize(frame, (30, 1800), dtype=np.float32), wanted, atol=5e-3)
        assert gpu.encode([frame])[0].maps is None
    assert len([*Cache().path.glob("encoder-*.engine")]) == 2  # the first, and one for the highest band
    with SuperResolver.open(bundle_path, backend=backend, memory_budget=workspace) as gpu:
        assert gpu.encode([frame[:480]])[0].maps is not None


def test_memory_is_used_again(trt: Trt, bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        view = View.resize((80, 60))
        for _ in range(3):
            gpu.decode(gpu.encode([ramp(30, 40)])[0], [view])
        blocks = gpu.backend.device.blocks  # type: ignore[attr-defined]
        before = len(blocks)
        for _ in range(20):
            gpu.decode(gpu.encode([ramp(30, 40)])[0], [view])
        assert len(blocks) == before
        for n in range(60):  # other sizes do not pile up
            gpu.decode(gpu.encode([ramp(30, 40)])[0], [View.resize((80 + n, 60 + n))])
        assert len(blocks) < before + 70


def test_maps_larger_than_what_is_kept_idle_are_used_again(trt: Trt, bundle_path: Path) -> None:
    trt.setattr(memory, "IDLE_BYTES", 1000)
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        blocks, batches = gpu.backend.device.blocks, []  # type: ignore[attr-defined]
        view = View.resize((80, 60))
        for _ in range(5):
            gpu.decode(gpu.encode([ramp(30, 40)] * 2)[0], [view])
            batches.append({*blocks})
        assert batches[1:] == [batches[1]] * 4  # nothing is allocated anew
        gpu.decode(gpu.encode([ramp(50, 40)] * 2)[0], [View.resize((90, 70))])
        for _ in range(40):
            gpu.decode(gpu.encode([ramp(30, 40)] * 2)[0], [view])
        gpu.decode(gpu.encode([ramp(55, 40)] * 2)[0], [View.resize((91, 71))])
        assert len(blocks) < 2 * len(batches[-1])  # what was used once is not kept for good


def test_what_is_in_steady_use_is_kept_up_to_a_bound(monkeypatch: Trt) -> None:
    monkeypatch.setattr(memory, "IDLE_BYTES", 1000)
    monkeypatch.setattr(memory, "RECENT_BYTES", 5000)
    freed: list[int] = []
    addresses = iter(range(1, 100))
    device = SimpleNamespace(allocate=lambda size: next(addresses), free=freed.append)
    buffers = memory.Buffers(device)  # type: ignore[arg-type]
    for size in (1000, 2100, 4300, 9000):  # none fits another
        buffers.give([buffers.take(size)])
        assert sum(block[0] for block in buffers.idle[:-1]) <= 5000
    assert freed == [1, 2]
    buffers.take(20000)
    assert freed == [1, 2, 3, 4]


def test_work_that_comes_again_is_replayed(trt: Trt, bundle: Path, caplog: Log) -> None:
    frames = [np.random.default_rng(n).uniform(0, 1, (21, 33, 3)).astype(np.float32) for n in range(6)]
    with SuperResolver.open(bundle, backend="tensorrt", precision="fp32", chunk=1000) as plain:
        wanted = [plain.resize(frame, (70, 51), dtype=np.float32) for frame in frames]
        other = plain.resize(frames[0][:20], (70, 51), dtype=np.float32)
        assert plain.backend.device.replayed == 0  # type: ignore[attr-defined]
    with SuperResolver.open(bundle, backend="tensorrt", precision="fp32", chunk=1000, cuda_graphs=True) as gpu:
        device = gpu.backend.device  # type: ignore[attr-defined]
        for frame, right in zip(frames, wanted, strict=True):
            np.testing.assert_array_equal(gpu.resize(frame, (70, 51), dtype=np.float32), right)
        before = device.replayed
        assert before > 12  # encoder and decoder
        np.testing.assert_array_equal(gpu.resize(frames[0][:20], (70, 51), dtype=np.float32), other)
        np.testing.assert_array_equal(gpu.resize(frames[1], (70, 51), dtype=np.float32), wanted[1])
        trt.setattr(type(device), "captures", False)
    with SuperResolver.open(bundle, backend="tensorrt", precision="fp32", cuda_graphs=True) as gpu:
        for frame, right in zip(frames, wanted, strict=True):
            np.testing.assert_array_equal(gpu.resize(frame, (70, 51), dtype=np.float32), right)
    assert sum("no CUDA graphs from here on" in r.message for r in caplog.records) == 2  # encoder and decoder


def test_idle_memory_is_given_back_before_memory_is_out(trt: Trt, bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        device = gpu.backend.device  # type: ignore[attr-defined]
        before = gpu.resize(ramp(60, 80), (90, 90))
        idle = sum(block.nbytes for block in device.blocks.values())
        trt.setattr(device, "most_bytes", idle + 1000)
        gpu.resize(ramp(16, 30), (90, 90))  # its own sizes are not idle: others have to go
        np.testing.assert_array_equal(gpu.resize(ramp(60, 80), (90, 90)), before)
        with pytest.raises(DiinnError, match="out of device memory"):
            gpu.resize(ramp(200, 200), (90, 90))
        np.testing.assert_array_equal(gpu.resize(ramp(60, 80), (90, 90)), before)  # and it goes on


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("names", "the encoder engine has frame, map_a, .* has frame, map0"),
        ("frame", "the encoder engine's frame is float16, not float32"),
        ("maps", "leaves the encoder engine as float16 and enters the decoder's as float32: build all again"),
    ],
)
def test_engines_that_do_not_fit_the_bundle_are_refused(trt: Trt, bundle_path: Path, change: str, message: str) -> None:
    import tensorrt as double

    original = double.Engine.__init__

    def other(self: object, *args: object) -> None:
        original(self, *args)
        types = self.types  # type: ignore[attr-defined]
        if change == "names" and "frame" in types:
            types["map_a"] = types.pop("map0")
            self.types = {name: types[name] for name in ("frame", "map_a", *sorted(types.keys() - {"frame", "map_a"}))}  # type: ignore[attr-defined]
        if change == "frame" and "frame" in types:
            types["frame"] = double.DataType.HALF
        if change == "maps" and "query" in types:
            types["map0"] = double.DataType.FLOAT

    trt.setattr(double.Engine, "__init__", other)
    with pytest.raises(DiinnError, match=message):
        SuperResolver.open(bundle_path, backend="tensorrt")


def test_frames_beyond_the_profile_open_another_engine(trt: Trt, bundle_path: Path, caplog: Log) -> None:
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        out = gpu.resize(np.zeros((490, 20, 3), np.uint8), (20, 490))
        assert out.shape == (490, 20, 3)
    assert any("is not for 20x490 frames" in r.message for r in caplog.records)
    assert len([*Cache().path.glob("encoder-*.engine")]) == 2


def test_an_encoder_that_was_refused_is_not_used_at_the_next_call(trt: Trt, bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        trt.setenv("DIINN_DOUBLE_FAIL", "wrong")
        for _ in range(2):
            with pytest.raises(DiinnError, match="encoder engine differs from the CPU"):
                gpu.resize(np.zeros((490, 20, 3), np.uint8), (20, 490))
        trt.setenv("DIINN_DOUBLE_FAIL", "")
        gpu.resize(np.zeros((48, 20, 3), np.uint8), (20, 49))
        assert all(metadata.verify["passed"] for metadata in gpu.backend.metadata)  # type: ignore[attr-defined]
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        assert len(gpu.backend.metadata) == 3  # type: ignore[attr-defined]


def test_another_size_keeps_the_batch(trt: Trt, bundle_path: Path) -> None:
    bundle = bundles.load(bundle_path)
    with SuperResolver.open(bundle_path, backend="tensorrt", check=False) as gpu:
        engines = gpu.backend._engines  # type: ignore[attr-defined]
        present = profiles.encoder(bundle, ((160, 120),), 4)
        opened = engines.open_encoder((20, 490), present)
        assert opened.profile.most["frame"] == (4, bundle.planes, 490, 160)
        original = build._workspace

        def workspace(bundle: bundles.Bundle, key: Key, *rest: object) -> int:
            if key.profile.most["frame"][0] > 1:
                raise build.TooLarge("4 frames need more")
            return original(bundle, key, *rest)  # type: ignore[arg-type]

        trt.setattr(build, "_workspace", workspace)
        opened = engines.open_encoder((20, 500), present)
        assert opened.profile.most["frame"] == (1, bundle.planes, 500, 20)


def test_larger_frames_do_not_cost_an_engine_each(trt: Trt, bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        for size in ((490, 20), (20, 650), (480, 640), (490, 640)):
            gpu.resize(np.zeros((*size, 3), np.uint8), (30, 700))
    assert len([*Cache().path.glob("encoder-*.engine")]) == 3  # the first, one higher, one wider and higher


def test_a_cache_that_can_only_be_read_is_as_good(trt: Trt, bundle_path: Path, caplog: Log) -> None:
    SuperResolver.open(bundle_path, backend="tensorrt", check=False).close()
    trt.setattr(cache_module, "replace", lambda *_: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        assert gpu.resize(np.zeros((20, 30, 3), np.uint8), (50, 40)).shape == (40, 50, 3)
    assert any("verdict is not kept" in r.message for r in caplog.records)


def test_engines_are_compared_once_and_the_verdict_is_kept(trt: Trt, bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path, backend="tensorrt") as gpu:
        verdict = gpu.backend.metadata[0].verify  # type: ignore[attr-defined]
    assert verdict["passed"]
    assert len(verdict["rows"]) == verify.SIZES + 1
    assert tuple(verdict["rows"][0]["frame"]) == (160, 120)  # what it is tuned to
    assert {row["batch"] for row in verdict["rows"]} == {1}
    trt.setattr(verify, "compare", lambda *_: pytest.fail("compared again"))
    SuperResolver.open(bundle_path, backend="tensorrt").close()


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        ("deserialise", "does not run the encoder engine it built"),
        ("context", "not enough device memory to open the encoder engine .*4096 of 4096 MiB are free.*: close other"),
        ("no memory", "not enough device memory to open the encoder engine"),
        ("run", "TensorRT failed to run the encoder"),
        ("nan", "the fp16 encoder engine differs from the CPU: FAILED, largest difference inf"),
        ("wrong", "the fp16 encoder engine differs from the CPU: FAILED, largest difference 0.1"),
    ],
)
def test_failures_and_wrong_results_are_not_passed_on(trt: Trt, bundle_path: Path, failing: str, message: str) -> None:
    trt.setenv("DIINN_DOUBLE_FAIL", failing)
    with pytest.raises(DiinnError, match=message):
        SuperResolver.open(bundle_path, backend="tensorrt")


def test_an_engine_that_failed_its_comparison_is_not_used_again(trt: Trt, bundle_path: Path) -> None:
    trt.setitem(verify.TOLERANCES, "fp16", 1e-9)
    with pytest.raises(DiinnError):
        SuperResolver.open(bundle_path, backend="tensorrt", check=False).backend.verify()
    trt.setitem(verify.TOLERANCES, "fp16", 0.03)
    with pytest.raises(DiinnError, match="engine differs from the CPU: FAILED, largest difference"):
        SuperResolver.open(bundle_path, backend="tensorrt")


def test_auto_takes_engines_that_are_there_and_says_what_it_passes_over(
    trt: Trt, bundle_path: Path, caplog: Log
) -> None:
    caplog.set_level("INFO")
    trt.setattr(backends, "BACKENDS", {n: b for n, b in backends.BACKENDS.items() if n != "cuda"})
    with SuperResolver.open(bundle_path) as resolver:
        assert resolver.backend.name == "onnxruntime"
    assert any("not tensorrt: no fp16 engines of tiny for this machine yet" in r.message for r in caplog.records)
    SuperResolver.open(bundle_path, backend="tensorrt").close()
    with SuperResolver.open(bundle_path) as resolver:
        assert resolver.backend.name == "tensorrt"
    trt.setenv("DIINN_DOUBLE_FAIL", "wrong")
    with SuperResolver.open(bundle_path) as resolver:  # and does not trust what fails its self-check
        assert resolver.backend.name == "onnxruntime"
    assert any(r.levelname == "WARNING" and "golden resize differs" in r.message for r in caplog.records)


def test_without_onnxruntime_nothing_is_said_to_be_compared(trt: Trt, bundle_path: Path, caplog: Log) -> None:
    original = backends.load
    trt.setattr(backends, "load", lambda name: original("none" if name == "onnxruntime" else name))
    trt.setitem(backends.BACKENDS, "none", ("diinn.runtime.backends.none", "None", "pip install 'diinn[cpu]'"))
    SuperResolver.open(bundle_path, backend="tensorrt").close()
    assert any("engines were not compared with the CPU" in r.message for r in caplog.records)
    assert [metadata.verify for _, metadata in Cache().entries() if not isinstance(metadata, str)] == [{}] * 3
    trt.setattr(backends, "load", original)
    SuperResolver.open(bundle_path, backend="tensorrt").close()  # and at the next chance it is
    assert all(metadata.verify["passed"] for _, metadata in Cache().entries() if not isinstance(metadata, str))


def test_auto_builds_nothing(trt: Trt, bundle_path: Path) -> None:
    trt.setattr(backends, "BACKENDS", {n: b for n, b in backends.BACKENDS.items() if n != "cuda"})
    SuperResolver.open(bundle_path, backend="tensorrt").close()
    with SuperResolver.open(bundle_path) as resolver:
        assert resolver.backend.name == "tensorrt"
        with pytest.raises(InputError, match=r"no encoder engine for 20x490 frames: diinn-build"):
            resolver.encode([np.zeros((490, 20, 3), np.uint8)])
    for engine in Cache().path.glob("encoder*.engine"):
        engine.write_bytes(b"changed")
    with SuperResolver.open(bundle_path) as resolver:
        assert resolver.backend.name == "onnxruntime"


def test_closing_twice_and_a_second_export(trt: Trt, bundle_path: Path, checkpoint_path: Path, tmp_path: Path) -> None:
    resolver = SuperResolver.open(bundle_path, backend="tensorrt")
    resolver.close()
    resolver.close()
    writer.export(checkpoint_path, tmp_path / "again.diinn")  # the same graphs: their engines are in the cache


def test_providers_are_onnx_runtimes(trt: Trt, bundle_path: Path) -> None:
    with pytest.raises(InputError, match="--provider cpu is of ONNX Runtime"):
        SuperResolver.open(bundle_path, backend="tensorrt", provider="cpu")


@pytest.mark.parametrize("failing", ["context", "no memory"])
def test_want_of_memory_is_no_reason_to_build_again(trt: Trt, bundle_path: Path, failing: str) -> None:
    SuperResolver.open(bundle_path, backend="tensorrt").close()
    before = {path: path.stat().st_mtime_ns for path in Cache().path.glob("*.json")}
    trt.setenv("DIINN_DOUBLE_FAIL", failing)
    with pytest.raises(DiinnError, match="not enough device memory"):
        SuperResolver.open(bundle_path, backend="tensorrt")
    assert {path: path.stat().st_mtime_ns for path in Cache().path.glob("*.json")} == before


def test_what_strong_typing_gets_wrong_is_built_with_flags(trt: Trt, bundle_path: Path, caplog: Log) -> None:
    frame, other = ramp(20, 30), ramp(490, 20)
    with SuperResolver.open(bundle_path, backend="onnxruntime") as cpu:
        wanted = [cpu.resize(f, (70, 51), dtype=np.float32) for f in (frame, other)]
    play("10.3.0", trt)
    trt.setenv("DIINN_DOUBLE_FAIL", "typed wrong")
    for _ in range(2):
        with SuperResolver.open(bundle_path, backend="tensorrt", cuda_graphs=True) as gpu:
            for _ in range(3):
                found = [gpu.resize(f, (70, 51), dtype=np.float32) for f in (frame, other)]
            assert gpu.backend.metadata[1].key.identity.route == "flags"  # type: ignore[attr-defined]
            assert all(metadata.verify["passed"] for metadata in gpu.backend.metadata)  # type: ignore[attr-defined]
            for one, two in zip(found, wanted, strict=True):
                np.testing.assert_allclose(one, two, atol=5e-3)
        warned = [r.message for r in caplog.records if "with precision flags" in r.message]
        caplog.clear()
    assert not warned  # the second time the cache knows
    play("10.13.0.35", trt)
    with pytest.raises(DiinnError, match="encoder engine differs from the CPU"):
        SuperResolver.open(bundle_path, backend="tensorrt")


def test_tensorrt_has_one_logger_a_process(trt: Trt, bundle_path: Path) -> None:
    import tensorrt as double

    loggers = []
    original = double.Runtime.__init__
    trt.setattr(double.Runtime, "__init__", lambda self, logger: (loggers.append(logger), original(self, logger))[1])
    for _ in range(2):
        SuperResolver.open(bundle_path, backend="tensorrt").close()
    assert len(loggers) == 2
    assert loggers[0] is loggers[1]


def test_an_engine_that_does_not_start_is_built_again_once(trt: Trt, bundle_path: Path, caplog: Log) -> None:
    SuperResolver.open(bundle_path, backend="tensorrt").close()
    trt.setenv("DIINN_DOUBLE_FAIL", "deserialise")
    with pytest.raises(DiinnError, match="does not run the encoder engine it built"):
        SuperResolver.open(bundle_path, backend="tensorrt")
    assert any("building it again" in r.message for r in caplog.records)
