"""The fused decoder without a GPU: the kernel's own source in an emulator that runs every thread (``tests/fakes``),
the encoder by ONNX Runtime's CPU provider or by the double of TensorRT."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
from conftest import ramp
from diinn.runtime import DiinnError, InputError, SuperResolver
from diinn.runtime.backends import fused as fused_backend
from diinn.runtime.backends import gpu_base
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.engines import verify
from diinn.runtime.engines.cache import Cache
from diinn.runtime.geometry.view import View
from diinn.runtime.gpu import decoder
from diinn.runtime.gpu import device as cuda_module
from diinn.runtime.noise.strength import Strength

Make = Callable[..., Path]
pytestmark = pytest.mark.device
TOLD = [Strength(), Strength(20, 50)]  # cameras of one batch may differ
Trt, Log = pytest.MonkeyPatch, pytest.LogCaptureFixture


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Makes a bundle with random weights, each once."""

    @cache
    def made(width: int, depth: int, **options: object) -> Path:
        return tiny.of_layers(tmp_path_factory.mktemp("bundle"), width, depth, **options)

    return made


@pytest.fixture
def gpu(trt: Trt) -> Trt:
    """A machine with a GPU and nvcc, and without TensorRT: the encoder runs on the CPU."""
    trt.setitem(sys.modules, "tensorrt", None)
    return trt


@pytest.fixture(params=[False, True], ids=["even", "skewed"])
def mode(request: pytest.FixtureRequest, gpu: Trt, device_kind: type) -> None:
    """Both modes of the emulator."""
    gpu.setattr(device_kind, "skewed", request.param)


SHAPES = [(16, 1), (16, 3), (32, 4), (64, 2), (128, 2), (256, 2)]


@pytest.mark.parametrize(("width", "depth", "reduced"), [*((*shape, False) for shape in SHAPES), (16, 3, True)])
def test_every_width_is_what_it_is_on_the_cpu(
    gpu: Trt, device_kind: type, mode: None, make: Make, width: int, depth: int, reduced: bool
) -> None:
    bundle = make(width, depth)
    if reduced:
        gpu.setattr(decoder, "LARGEST_UNREDUCED", 0.0)
    frames = [ramp(13, 9), ramp(13, 9)[::-1].copy()]
    x, y = np.meshgrid(np.linspace(-2, 10, 11, dtype=np.float32), np.linspace(0, 12, 7, dtype=np.float32))
    views = [View.roi((1.5, 2.25, 5, 7.5), (13, 11)), View.remap(x, y, border_value=0.5)]
    with SuperResolver.open(bundle, backend="onnxruntime") as cpu:
        wanted = [cpu.decode(e, views, dtype=np.float32) for e in cpu.encode(frames, TOLD)]
    with SuperResolver.open(bundle, backend="cuda", check=width < 64) as fused:
        launches = fused.backend.device.launches  # type: ignore[attr-defined]
        found = fused.decode_all([(e, views) for e in fused.encode(frames, TOLD)], dtype=np.float32)
        assert fused.backend.device.launches - launches == 2  # frames made planar; all cameras and views decoded
        small = [fused.decode(e, views) for e in fused.encode(frames, TOLD)]
        assert f"({device_kind.name}, fused_" in fused.backend.describe()  # type: ignore[attr-defined]
        assert fused.backend._decoder.plan.kernel.endswith("_reduced") == reduced  # type: ignore[attr-defined]
    for one, two, three in zip(wanted, found, small, strict=True):
        for right, ours, pixels in zip(one, two, three, strict=True):
            np.testing.assert_allclose(ours, right, atol=5e-3)
            assert np.sqrt(np.mean((ours - right) ** 2)) < 1e-3
            np.testing.assert_array_equal(pixels, np.clip(np.rint(ours * np.float32(255)), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("width", "shared"), [(32, 20 * 1024), (64, 16 * 1024), (256, 64 * 1024)])
def test_weights_are_streamed_where_they_do_not_fit(
    gpu: Trt, device_kind: type, mode: None, make: Make, width: int, shared: int
) -> None:
    bundle, depth = make(width, 3), 3
    gpu.setattr(device_kind, "shared_bytes", shared)
    chosen = decoder.plan(width, depth, shared)
    assert chosen.kernel.endswith("streamed")
    assert chosen.shared <= shared
    frame = ramp(12, 11)
    opened = SuperResolver.open(bundle, backend="cuda", check=width < 64)  # the emulator is slow
    with SuperResolver.open(bundle, backend="onnxruntime") as cpu, opened as fused:
        right = cpu.resize(frame, (13, 12), dtype=np.float32)
        np.testing.assert_allclose(fused.resize(frame, (13, 12), dtype=np.float32), right, atol=5e-3)


FETCH = "fetch(piece * PARTS + of_piece + AHEAD, part + AHEAD, (known + AHEAD) % SLOTS);"
BARRIER = "__syncthreads();  // this part is there, and the one before is no longer read"
COPIED = "wait_for_copies(filled[slot], part / SLOTS % 2);"
READ = "wait_for_readers(read[slot], (number / SLOTS - 1) % 2);"


@pytest.mark.parametrize(
    ("width", "what", "line", "instead"),
    [
        pytest.param(
            32, "a part fetched while others read the one before", BARRIER, f"{FETCH} {BARRIER}", id="early fetch"
        ),
        pytest.param(32, "no barrier before a part is used", BARRIER, "", id="no barrier"),
        pytest.param(32, "no wait for what was fetched", f"copies_done();\n{' ' * 24}{BARRIER}", BARRIER, id="no wait"),
        pytest.param(256, "a part fetched while others read", READ, "", id="no wait for readers"),
        pytest.param(256, "a part used before it is there", COPIED, "", id="no wait for copies"),
    ],
)
def test_a_race_in_the_kernel_is_seen(
    gpu: Trt, device_kind: type, make: Make, tmp_path: Path, width: int, what: str, line: str, instead: str
) -> None:
    """The kernel gives the same bits in both modes of the emulator; with a mistake at its barriers it does not."""
    bundle, frame = make(width, 3), ramp(*{32: (24, 20), 256: (10, 12)}[width])
    gpu.setattr(device_kind, "shared_bytes", {32: 20, 256: 163}[width] * 1024)
    size = {32: (40, 48), 256: (26, 22)}[width]

    def pixels(skewed: bool) -> np.ndarray:
        gpu.setattr(device_kind, "skewed", skewed)
        with SuperResolver.open(bundle, backend="cuda", check=False) as fused:
            assert fused.backend._decoder.plan.kernel == f"fused_{width}_streamed"  # type: ignore[attr-defined]
            return fused.resize(frame, size, dtype=np.float32)

    right = pixels(skewed=False)
    np.testing.assert_array_equal(pixels(skewed=True), right)
    sources = shutil.copytree(decoder.KERNELS, tmp_path / "kernels")
    source = sources / "fused_decoder.cu"
    text = source.read_text()
    assert text.count(line) == text.count(FETCH) == 1
    moved = text.replace(FETCH, "") if FETCH in instead else text
    source.write_text(moved.replace(line, instead))
    for module in (gpu_base, decoder):
        gpu.setattr(module, "KERNELS", sources)
    gpu.setattr(device_kind, "folder", sources)
    assert not all(np.array_equal(pixels(skewed), right) for skewed in (False, True)), what


def test_plans() -> None:
    small, paper = decoder.plan(32, 4, 163 * 1024), decoder.plan(256, 4, 163 * 1024)
    assert small == decoder.Plan("fused_32_resident", 8, (6 + 8) * 2048, 2)
    assert paper == decoder.Plan("fused_256_streamed", 8, 10 * 16384, 1)
    assert decoder.plan(32, 4, 163 * 1024, reduced=True).kernel == "fused_32_resident_reduced"
    assert decoder.plan(256, 4, 99 * 1024).warps == 4
    assert decoder.plan(256, 4, 64 * 1024).warps == 2
    with pytest.raises(InputError, match="no fused kernel for a decoder 48 wide, only for 16, 32, 64, 128, 256"):
        decoder.plan(48, 4, 163 * 1024)
    with pytest.raises(InputError, match="needs 49152 bytes of shared memory, the device has 40000"):
        decoder.plan(256, 4, 40000)


@pytest.mark.parametrize("shared", [64, 99, 163, 227])
@pytest.mark.parametrize("width", decoder.WIDTHS)
def test_plans_fit_the_device_and_two_blocks_where_they_can(width: int, shared: int) -> None:
    found = decoder.plan(width, 4, shared * 1024)
    assert found.blocks * (found.shared + 1024) <= (shared + 1) * 1024
    assert found.warps * found.blocks <= decoder.WARPS[width][1]
    wanted = {(64, 99): ("streamed", 2), (64, 163): ("resident", 2), (128, 99): ("streamed", 2)}
    if (width, shared) in wanted:
        form, blocks = wanted[width, shared]
        assert (found.kernel, found.blocks) == (f"fused_{width}_{form}", blocks)


def test_sines_are_reduced_unless_the_bundle_says_that_arguments_are_small() -> None:
    for name in bundles.shipped():
        layers = bundles.load(name).layers()
        assert not decoder.needs_reduction(layers)
        for impossible_or_large in (26, np.nan, np.inf, 0, -1):
            assert decoder.needs_reduction({**layers, "largest_argument": np.float32(impossible_or_large)})
        del layers["largest_argument"]  # a bundle of an earlier exporter
        assert decoder.needs_reduction(layers)


def test_bands_and_several_launches(gpu: Trt, make: Make) -> None:
    bundle, frame = make(16, 3), ramp(40, 21)
    with SuperResolver.open(bundle, backend="onnxruntime") as cpu:
        budget = cpu.bundle.workspace * 21 * (4 * cpu.bundle.radius + 1)
        x, y = np.meshgrid(np.linspace(-3, 22, 50, dtype=np.float32), np.linspace(0, 39, 40, dtype=np.float32))
        wanted = cpu.resize(frame, (50, 97), dtype=np.float32), cpu.remap(frame, x, y, dtype=np.float32)
    with SuperResolver.open(bundle, backend="cuda", memory_budget=budget, chunk=700) as fused:
        assert fused.encode([frame])[0].maps is None
        found = fused.resize(frame, (50, 97), dtype=np.float32), fused.remap(frame, x, y, dtype=np.float32)
    for ours, right in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, right, atol=5e-3)


def test_a_chunk_is_on_its_way_while_the_one_before_is_copied(gpu: Trt, bundle_path: Path) -> None:
    frame = ramp(12, 9)
    with SuperResolver.open(bundle_path, backend="cuda", check=False) as fused:
        right = fused.resize(frame, (20, 20))
    with SuperResolver.open(bundle_path, backend="cuda", check=False, chunk=100) as fused:
        backend, order, (encoded,) = fused.backend, [], fused.encode([frame])
        decode, fetch = backend.decode_segments, backend.device.fetch  # type: ignore[attr-defined]

        def fetched(*what: Any) -> SimpleNamespace:
            order.append("begun")
            mark = fetch(*what)
            return SimpleNamespace(wait=lambda: (order.append("waited"), mark.wait())[1])

        gpu.setattr(backend.device, "fetch", fetched)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(fused.decode(encoded, [View.resize((20, 20))])[0], right)
        assert order == ["begun", "begun", "waited", "begun", "waited", "begun", "waited", "waited"]

        def fails_late(*what: object) -> None:
            if len(order) > 9:
                raise InputError("the third chunk fails")
            decode(*what)

        gpu.setattr(backend, "decode_segments", fails_late)
        with pytest.raises(InputError, match="third"):
            fused.decode(encoded, [View.resize((20, 20))])
        gpu.setattr(backend, "decode_segments", decode)
        np.testing.assert_array_equal(fused.decode(encoded, [View.resize((20, 20))])[0], right)


def test_decoding_is_replayed(gpu: Trt, bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path, backend="cuda") as plain:
        wanted = [plain.resize(ramp(12, 9 + n % 2), (20, 20)) for n in range(6)]
    with SuperResolver.open(bundle_path, backend="cuda", cuda_graphs=True) as fused:
        for n, right in enumerate(wanted):
            np.testing.assert_array_equal(fused.resize(ramp(12, 9 + n % 2), (20, 20)), right)
        assert fused.backend.device.replayed >= 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoder", ["TensorRT", "onnxruntime"])
def test_it_decodes_by_nvidias_own_binding(
    request: pytest.FixtureRequest, trt: Trt, device_kind: type, bundle_path: Path, encoder: str
) -> None:
    """``test_device.py`` has both bindings call by call; here is what a backend takes of the second."""
    if request.config.getoption("device") != "standin":
        pytest.skip("of the driver and its bindings: make test-device")
    pytest.importorskip("cuda.bindings", reason="no cuda.bindings: pip install cuda-bindings")
    trt.setattr(cuda_module, "BINDINGS", cuda_module.BINDINGS[1:])
    if encoder == "onnxruntime":
        trt.setitem(sys.modules, "tensorrt", None)
    frame = ramp(12, 9)
    with SuperResolver.open(bundle_path, backend="onnxruntime") as cpu:
        right = cpu.resize(frame, (20, 20), dtype=np.float32)
    for options in ({"chunk": 100}, {"cuda_graphs": True}):
        with SuperResolver.open(bundle_path, backend="cuda", **options) as fused:  # type: ignore[arg-type]
            assert fused.backend.device.binding.startswith("cuda.bindings")  # type: ignore[attr-defined]
            assert f"encoder by {encoder}" in fused.backend.describe()
            for _ in range(3):
                np.testing.assert_allclose(fused.resize(frame, (20, 20), dtype=np.float32), right, atol=5e-3)


def test_the_encoder_is_an_engine_where_tensorrt_is(trt: Trt, bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path, backend="cuda") as fused:
        assert "encoder by TensorRT 10.13.0.35" in fused.backend.describe()
        with SuperResolver.open(bundle_path, backend="onnxruntime") as cpu:
            right = cpu.resize(ramp(20, 30), (50, 40), dtype=np.float32)
        np.testing.assert_allclose(fused.resize(ramp(20, 30), (50, 40), dtype=np.float32), right, atol=5e-3)
    with SuperResolver.open(bundle_path) as resolver:  # its encoder engine is in the cache
        assert resolver.backend.name == "cuda"


@pytest.fixture
def provider(trt: Trt) -> None:
    """An ONNX Runtime that seems to have a CUDA provider."""

    class Encoder(fused_backend.OrtEncoder):
        def __init__(self, bundle: object, device: object, provider: str) -> None:
            super().__init__(bundle, device, "CPU")  # type: ignore[arg-type]
            self.description = f"a {provider} provider"

    trt.setattr(fused_backend, "OrtEncoder", Encoder)
    trt.setattr(fused_backend, "_no_provider", lambda name: "")


DAMAGES = ["engine", "metadata", "verdict", "context"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_encoder_engine_leaves_onnx_runtime(
    trt: Trt, provider: None, bundle_path: Path, caplog: Log, damage: str
) -> None:
    """ "auto" builds nothing: it takes the fused decoder all the same, and says why the encoder is another."""
    SuperResolver.open(bundle_path, backend="cuda").close()
    (engine,) = Cache().path.glob("encoder-*.engine")
    if damage == "engine":
        engine.write_bytes(b"damaged")
    elif damage == "metadata":
        engine.with_suffix(".json").write_text("{")
    elif damage == "verdict":
        message = json.loads(engine.with_suffix(".json").read_text())
        message["verify"]["passed"] = False
        engine.with_suffix(".json").write_text(json.dumps(message))
    else:
        trt.setenv("DIINN_DOUBLE_FAIL", "context")
    with SuperResolver.open(bundle_path) as fused:
        assert fused.backend.describe().endswith("encoder by a CUDA provider)")
        fused.resize(ramp(20, 30), (50, 40))
    if damage in ("engine", "context"):  # it counts as there until it is opened
        (message,) = [r.message for r in caplog.records if "the encoder runs by ONNX Runtime" in r.message]
        assert ("not enough device memory to open" if damage == "context" else engine.name) in message


@pytest.mark.parametrize("size", [(20, 30), (20, 490)])
def test_a_new_encoder_engine_that_is_wrong_leaves_onnx_runtime(
    trt: Trt, provider: None, bundle_path: Path, caplog: Log, size: tuple[int, int]
) -> None:
    """At once, not only when it is opened again; when it is opened, or when another size wants another one."""
    frame = ramp(size[1], size[0])
    with SuperResolver.open(bundle_path, backend="onnxruntime", provider="cpu") as cpu:
        right = cpu.resize(frame, (50, 40), dtype=np.float32)
    late = size[1] > 480
    if not late:
        trt.setitem(verify.TOLERANCES, "fp16", 1e-9)
        trt.setattr(
            fused_backend.CudaBackend, "tolerance", property(lambda self: 0.03, lambda self, value: None), raising=False
        )
    with SuperResolver.open(bundle_path, backend="cuda", cuda_graphs=True) as fused:
        if late:
            assert "encoder by TensorRT" in fused.backend.describe()
            trt.setitem(verify.TOLERANCES, "fp16", 1e-9)
        for _ in range(3):
            found = fused.resize(frame, (50, 40), dtype=np.float32)
            np.testing.assert_allclose(found, right, atol=5e-3)
        assert fused.backend.describe().endswith("encoder by a CUDA provider)")
        with pytest.raises(AttributeError):
            _ = fused.backend._encoder.opened  # type: ignore[attr-defined]
    (message,) = [r.message for r in caplog.records if "the encoder runs by ONNX Runtime" in r.message]
    assert "differs from the CPU" in message


@pytest.mark.parametrize("ending", [".engine", ".json"])
def test_a_damaged_encoder_engine_is_built_again_where_that_is_allowed(
    trt: Trt, bundle_path: Path, ending: str
) -> None:
    SuperResolver.open(bundle_path, backend="cuda").close()
    (engine,) = Cache().path.glob("encoder-*.engine")
    engine.with_suffix(ending).write_bytes(b"damaged")
    with SuperResolver.open(bundle_path, backend="cuda") as fused:
        assert "encoder by TensorRT" in fused.backend.describe()


def test_auto_does_not_encode_on_the_cpu_for_a_bad_engine(trt: Trt, bundle_path: Path, caplog: Log) -> None:
    SuperResolver.open(bundle_path, backend="cuda").close()
    (engine,) = Cache().path.glob("encoder-*.engine")
    engine.write_bytes(b"damaged")
    with SuperResolver.open(bundle_path) as resolver:
        assert resolver.backend.name == "onnxruntime"
    assert any("not cuda: no encoder: " in r.message and engine.name in r.message for r in caplog.records)


def test_an_encoder_on_the_cpu_is_said(gpu: Trt, bundle_path: Path, caplog: Log) -> None:
    SuperResolver.open(bundle_path, backend="cuda").close()
    (message,) = [r.message for r in caplog.records if "runs on the CPU" in r.message]
    assert "TensorRT is not installed" in message
    assert "has no CUDA provider: pip install onnxruntime-gpu" in message


def test_auto_passes_over_what_does_not_fit_and_says_so(gpu: Trt, make: Make, caplog: Log) -> None:
    caplog.set_level("INFO")
    with SuperResolver.open(make(16, 2)) as resolver:
        assert resolver.backend.name == "onnxruntime"
    assert any("not cuda: onnxruntime" in r.message and "no CUDA provider" in r.message for r in caplog.records)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ({"width": 16, "depth": 2, "modulation": "mz"}, {}, "holds no layers.npz"),
        ({"width": 24, "depth": 2}, {}, "no fused kernel for a decoder 24 wide"),
        ({"width": 16, "depth": 2}, {"precision": "fp32"}, "decodes in fp16, not fp32: use --backend tensorrt"),
        ({"width": 16, "depth": 2}, {"provider": "cpu"}, "--provider cpu is of ONNX Runtime"),
    ],
)
def test_what_has_no_kernel_is_said(
    gpu: Trt, make: Make, model: dict[str, object], options: dict[str, str], message: str
) -> None:
    bundle = make(**model)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        SuperResolver.open(bundle, backend="cuda", **options)  # type: ignore[arg-type]


def test_an_architecture_without_a_kernel_is_said(gpu: Trt, device_kind: type, bundle_path: Path) -> None:
    gpu.setattr(device_kind, "capability", "7.2")
    gpu.setattr(device_kind, "kernels", lambda *_: pytest.fail("compiled"))  # nvcc 13 refuses it, with another remedy
    with pytest.raises(InputError, match=r"no fused kernel for compute capability 7\.2, only for 7\.5 and later"):
        SuperResolver.open(bundle_path, backend="cuda")


def test_out_of_memory_is_tried_once_in_smaller_pieces(gpu: Trt, bundle_path: Path, caplog: Log) -> None:
    with SuperResolver.open(bundle_path, backend="cuda") as fused:
        frame = ramp(20, 30)
        right = fused.resize(frame, (200, 200))
        device = fused.backend.device  # type: ignore[attr-defined]
        encoded = fused.encode([frame])[0]
        held = sum(block.nbytes for block in device.blocks.values())
        idle = sum(size for size, _ in fused.backend._buffers.idle)  # type: ignore[attr-defined]
        device.most_bytes = held - idle + 60_000
        (pixels,) = fused.decode(encoded, [View.resize((210, 210))])
        assert pixels.shape == (210, 210, 3)
        assert any("smaller pieces" in r.message for r in caplog.records)
        device.most_bytes = 10_000
        with pytest.raises(DiinnError, match="out of device memory"):
            fused.resize(ramp(21, 31), (400, 400))
        device.most_bytes = 2**40
        np.testing.assert_array_equal(fused.resize(frame, (200, 200)), right)


def test_shipped_bundles_hold_their_layers() -> None:
    for name in bundles.shipped():
        bundle = bundles.load(name)
        layers = bundle.layers()
        assert layers["hidden"].shape == (len(bundle.maps) - 1, 2, *[bundle.maps[0].channels] * 2)
        decoder.plan(bundle.maps[0].channels, len(bundle.maps), 48 * 1024)
