"""OpenVINO through ONNX Runtime's plugin: which precision, whether pictures stay right, and what is refused."""

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ramp
from diinn.runtime import DiinnError, InputError, SuperResolver
from diinn.runtime.backends import openvino
from diinn.runtime.backends.onnxruntime import OnnxRuntimeBackend
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.bundles import golden
from diinn.runtime.errors import BundleError
from diinn.runtime.geometry.segments import Segment
from diinn.runtime.geometry.view import View
from diinn.runtime.sources import demo
from diinn.runtime.util import compiling
from diinn.runtime.util.onnx_runtime import ort

Patch, Log = pytest.MonkeyPatch, pytest.LogCaptureFixture


def lacking() -> str:
    """Why OpenVINO is not tested here; empty where it is."""
    try:
        openvino.devices()
    except DiinnError as error:
        return str(error)
    return ""


needs_openvino = pytest.mark.skipif(bool(lacking()), reason=lacking() or "it is here")
needs_amx = pytest.mark.skipif("bf16" not in openvino.worthwhile("CPU"), reason="no AMX here: bf16 is not faster")


@pytest.fixture(autouse=True)
def own_choice(monkeypatch: Patch) -> None:
    """The runtime chooses, as it does for users."""
    monkeypatch.delenv("DIINN_CPU_ENCODER")


def opened(bundle: str | Path, **options: Any) -> SuperResolver:
    return SuperResolver.open(bundle, backend="onnxruntime", **options)


def picture(bundle: str | Path, **options: Any) -> tuple[np.ndarray, str]:
    """A picture, and what made it."""
    with opened(bundle, **options) as resolver:
        return resolver.resize(demo.frame(0.0, (48, 36)), (96, 72), dtype=np.float32), resolver.backend.describe()


def processor(monkeypatch: Patch, *features: str) -> None:
    """A processor of such features."""
    monkeypatch.setattr(openvino, "features", lambda: features)


def logged(caplog: Log, level: str = "WARNING") -> list[str]:
    return [r.message for r in caplog.records if r.levelname == level and r.name.startswith("diinn")]


@needs_openvino
@pytest.mark.parametrize("model", bundles.shipped())
def test_fp32_is_onnx_runtimes(model: str) -> None:
    """Of several sizes and batches in turn, each new to it, and in bands."""
    rng = np.random.default_rng(0)
    with opened(model, provider="openvino", precision="fp32") as ours, opened(model, provider="cpu") as theirs:
        assert "encoder OpenVINO fp32, decoder " in ours.backend.describe()
        for batch, (width, height) in ((1, (33, 21)), (3, (17, 40)), (2, (33, 21)), (1, (64, 48))):
            frames = [rng.integers(0, 256, (height, width, 3)).astype(np.uint8) for _ in range(batch)]
            views = [View.resize((2 * width + 1, 3 * height))]
            for mine, right in zip(ours.encode(frames, 5.0), theirs.encode(frames, 5.0), strict=True):
                (a,), (b,) = ours.decode(mine, views, dtype=np.float32), theirs.decode(right, views, dtype=np.float32)
                np.testing.assert_allclose(a, b, atol=2e-5)
        whole = ours.resize(frames[0], (100, 90), dtype=np.float32)
        ours.memory_budget = ours.bundle.workspace * 64 * (2 * ours.bundle.radius + 8)
        assert ours.encode(frames[:1])[0].maps is None
        np.testing.assert_allclose(ours.resize(frames[0], (100, 90), dtype=np.float32), whole, atol=2e-5)


@needs_openvino
@pytest.mark.parametrize(
    ("width", "depth", "decoder"),
    [(256, 1, {}), (24, 1, {"name": "liif"}), (16, None, {"name": "metasr"})],
)
def test_decoders_of_other_kinds_in_fp32(
    tmp_path: Path, monkeypatch: Patch, width: int, depth: int, decoder: Any
) -> None:
    """As wide as the paper's, LIIF and Meta-SR, with OpenVINO's decoder where it has one."""
    pytest.importorskip("torch", reason="no PyTorch: it makes checkpoints")
    path = random_model(tmp_path, width, depth, **decoder)
    right, by = picture(path, provider="cpu", decoder="onnx")
    assert "encoder CPU, decoder CPU" in by
    monkeypatch.setattr(openvino, "worthwhile", lambda device: ["fp32"])
    found, by = picture(path, provider="openvino")
    decodes = "CPU" if decoder.get("name") == "metasr" else "OpenVINO fp32"
    assert f"encoder OpenVINO fp32, decoder {decodes}" in by
    np.testing.assert_allclose(found, right, atol=2e-5)
    assert "decoder CPU" in picture(path, provider="openvino", decoder="onnx")[1]
    monkeypatch.setenv("DIINN_CPU_DECODER", "onnxruntime")
    assert "decoder CPU" in picture(path, provider="openvino")[1]


def random_model(folder: Path, width: int, depth: int | None, name: str = "diinn") -> Path:
    """The bundle of a model with random weights."""
    import torch
    from diinn.export import writer
    from diinn.train import checkpoint
    from diinn.train.config import parse
    from diinn.train.model import ModelConfig, SuperResolutionModel

    torch.manual_seed(0)
    decoder = {"name": name, "width": width} | ({} if depth is None else {"depth": depth})
    encoder = {"name": "compact", "channels": 8, "blocks": 1}
    model = SuperResolutionModel(parse(ModelConfig, {"encoder": encoder, "decoder": decoder, "dial": {}}, "test"))
    path = folder / f"{name}{width}.pth"
    checkpoint.save(path, checkpoint.Checkpoint(model, (1.0, 4.0)))
    return writer.export(path).path


@needs_openvino
@needs_amx
@pytest.mark.parametrize("model", bundles.shipped())
def test_a_processor_with_amx_encodes_in_bf16(model: str) -> None:
    """And its picture is near enough to cost 0.05 dB at most."""
    right, by = picture(model, provider="cpu")
    assert "encoder CPU, decoder " in by
    found, by = picture(model)
    assert "encoder OpenVINO bf16, decoder " in by
    gap = float(np.sqrt(np.mean((found.clip(0, 1) - right.clip(0, 1)) ** 2)))
    assert 1e-5 < gap < openvino.largest_gap("bf16")
    with opened(model) as resolver:
        assert max(resolver.check().values()) < openvino.TOLERANCES["bf16"]


def test_the_allowed_difference_costs_what_it_says() -> None:
    for precision, loss in openvino.ALLOWED_LOSS.items():
        error = 10 ** (-openvino.FAITHFUL / 10)
        worse = error + openvino.largest_gap(precision) ** 2
        assert 10 * np.log10(worse / error) == pytest.approx(loss)


@pytest.mark.parametrize("features", [(), ("avx2", "fma"), ("avx512f", "avx512_bf16", "avx512_fp16", "amx_int8")])
def test_a_processor_where_it_is_no_faster_is_left_to_onnx_runtime(
    monkeypatch: Patch, caplog: Log, features: tuple[str, ...]
) -> None:
    processor(monkeypatch, *features)
    monkeypatch.setattr(openvino, "devices", lambda: pytest.fail("looked for it"))
    caplog.set_level("INFO")
    assert "encoder CPU" in picture("nano")[1]
    assert not [line for line in logged(caplog, "INFO") if "OpenVINO" in line]


def test_amx_for_fp16_comes_first(monkeypatch: Patch) -> None:
    processor(monkeypatch, "amx_bf16", "amx_fp16")
    assert openvino.worthwhile("CPU") == ["fp16", "bf16"]
    processor(monkeypatch, "amx_bf16")
    assert openvino.worthwhile("CPU") == ["bf16"]


@needs_openvino
def test_a_model_that_loses_too_much_is_not_run_in_that_precision(monkeypatch: Patch, caplog: Log) -> None:
    processor(monkeypatch, "amx_bf16")
    right, _ = picture("nano", provider="cpu")
    caplog.set_level("INFO")
    monkeypatch.setitem(openvino.ALLOWED_LOSS, "bf16", 0.001)
    found, by = picture("nano")
    assert "encoder CPU" in by
    np.testing.assert_array_equal(found, right)
    (why,) = [line for line in logged(caplog, "INFO") if line.startswith("ONNX Runtime encodes: ")]
    assert re.search(r"OpenVINO in bf16 differs by \S+ rms, \S+ is allowed: --precision bf16 lifts it", why)
    assert "encoder OpenVINO fp32" in picture("nano", provider="openvino")[1]
    assert "encoder OpenVINO bf16" in picture("nano", precision="bf16")[1]


@needs_openvino
def test_a_wide_decoder_that_loses_too_much_leaves_the_encoder(tmp_path: Path, monkeypatch: Patch) -> None:
    pytest.importorskip("torch", reason="no PyTorch: it makes checkpoints")
    processor(monkeypatch, "amx_bf16")
    path = random_model(tmp_path, 72, 1)
    assert "encoder OpenVINO bf16, decoder OpenVINO bf16" in picture(path)[1]
    asked: list[bool] = []
    plans = openvino.plans

    def strict(*arguments: Any, **options: Any) -> Iterator[tuple[str, bool]]:
        for precision, decodes in plans(*arguments, **options):
            monkeypatch.setitem(openvino.ALLOWED_LOSS, "bf16", 0.0 if decodes else 0.05)
            asked.append(decodes)
            yield precision, decodes

    monkeypatch.setattr(openvino, "plans", strict)
    with opened(path, chunk=None) as resolver:
        assert "encoder OpenVINO bf16, decoder CPU" in resolver.backend.describe()
        assert resolver.backend.workers == resolver.backend.options.thread_count
    assert asked == [True, False]


@needs_openvino
def test_what_differs_from_the_golden_sample_goes_back_to_onnx_runtime(monkeypatch: Patch, caplog: Log) -> None:
    processor(monkeypatch, "amx_bf16")
    right, _ = picture("nano", provider="cpu")
    monkeypatch.setitem(openvino.TOLERANCES, "bf16", 1e-4)
    found, by = picture("nano")
    assert "encoder CPU, decoder " in by
    np.testing.assert_array_equal(found, right)
    (warning,) = logged(caplog)
    assert warning.startswith("ONNX Runtime encodes, not OpenVINO: ")
    assert "differs by" in warning
    with pytest.raises(DiinnError, match="differs by"):
        picture("nano", provider="openvino", precision="bf16")


@needs_openvino
@needs_amx
@pytest.mark.parametrize("options", [{}, {"provider": "openvino"}, {"precision": "bf16"}])
def test_a_wrong_compiled_decoder_is_noticed_before_openvino_encodes(
    monkeypatch: Patch, caplog: Log, options: dict[str, str]
) -> None:
    right, by = picture("nano", decoder="onnx")
    if "decoder fused" not in picture("nano", provider="cpu")[1]:
        pytest.skip("no compiled decoder here: apt-get install g++")
    decode = OnnxRuntimeBackend.decode

    def wrong(self: OnnxRuntimeBackend, maps: Any, segments: Sequence[Segment]) -> None:
        decode(self, maps, segments)
        for segment in segments:
            if self._fused is not None and segment.out.dtype == np.float32:
                segment.out[...] += 0.03  # less than bf16 is allowed

    monkeypatch.setattr(OnnxRuntimeBackend, "decode", wrong)
    found, made = picture("nano", **options)
    assert made == by
    assert "encoder OpenVINO bf16, decoder CPU" in made
    np.testing.assert_array_equal(found, right)
    (warning,) = logged(caplog)
    assert warning.startswith("ONNX Runtime decodes, not the compiled decoder: ")


@needs_openvino
@pytest.mark.parametrize("options", [{}, {"provider": "openvino"}, {"precision": "bf16"}])
@pytest.mark.parametrize("broken", [("gather_decoder",), ("encoder",)])
def test_what_openvino_cannot_open_stays_with_onnx_runtime(
    tmp_path: Path, monkeypatch: Patch, caplog: Log, options: dict[str, str], broken: tuple[str, ...]
) -> None:
    """A decoder leaves the encoder; a bf16 encoder is never left under another's name."""
    pytest.importorskip("torch", reason="no PyTorch: it makes checkpoints")
    processor(monkeypatch, "amx_bf16")
    path = random_model(tmp_path, 72, 1)
    right, _ = picture(path, provider="cpu")
    open_session = openvino.open_session

    def opens(content: bytes, where: Path, *arguments: Any) -> Any:
        if where.stem in broken:
            raise BundleError(f"cannot open {where.name}")
        return open_session(content, where, *arguments)

    monkeypatch.setattr(openvino, "open_session", opens)
    caplog.clear()
    if broken == ("encoder",) and options:
        with pytest.raises(BundleError, match="cannot open encoder"):
            picture(path, **options)
        return
    found, by = picture(path, **options)
    if broken == ("encoder",):
        assert "encoder CPU, decoder CPU" in by
        np.testing.assert_array_equal(found, right)
        assert [line for line in logged(caplog) if line.startswith("ONNX Runtime encodes: cannot open encoder")]
    else:
        assert "encoder OpenVINO bf16, decoder CPU" in by
        assert 0 < np.abs(found - right).max() < openvino.TOLERANCES["bf16"]


@needs_openvino
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_precision_can_be_asked_for(precision: str) -> None:
    right, _ = picture("nano", provider="cpu")
    found, by = picture("nano", provider="openvino", precision=precision)
    assert f"encoder OpenVINO {precision}, decoder " in by
    gap = np.abs(found - right).max()
    low, high = {"fp32": (0, 1e-5), "fp16": (1e-6, 3e-3), "bf16": (1e-6, 0.03)}[precision]
    assert low <= gap <= high


@needs_openvino
def test_one_thread_takes_one_core() -> None:
    """And no thread is bound to a core."""
    with opened("nano", provider="openvino", precision="fp32", threads=1) as resolver:
        frame = ramp(120, 160)
        for _ in range(2):
            resolver.encode([frame])
        wall, used = time.perf_counter(), time.process_time()
        for _ in range(5):
            resolver.encode([frame])
        wall, used = time.perf_counter() - wall, time.process_time() - used
        assert used <= 1.3 * wall
        if hasattr(os, "sched_getaffinity"):
            tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
            assert {frozenset(os.sched_getaffinity(task)) for task in tasks} == {frozenset(os.sched_getaffinity(0))}


@needs_openvino
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"provider": "openvino:gpu.7"}, "OpenVINO has no device GPU.7 here, only .*CPU.*: use --provider cpu"),
        ({"provider": "openvino:tpu"}, "OpenVINO has no device TPU here, only .*CPU.*: use --provider cpu"),
        ({"provider": "OpenVINO:NPU"}, "OpenVINO's NPU takes frames of one size alone: use openvino or openvino:gpu"),
        ({"provider": "openvino", "precision": "int8"}, "OpenVINO computes in fp32, bf16, fp16, not int8"),
        ({"provider": "cpu", "precision": "bf16"}, "provider cpu computes in fp32, not bf16: use --provider openvino"),
    ],
)
def test_devices_and_precisions_that_are_not_there(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        opened("nano", **options)


@pytest.mark.parametrize("what", ["not installed", "old onnxruntime", "another architecture", "broken import"])
def test_an_installation_that_does_not_work_is_one_line(
    monkeypatch: Patch, caplog: Log, tmp_path: Path, what: str
) -> None:
    """Where it was not asked for the picture is ONNX Runtime's; where it was, it is an error."""
    right, _ = picture("nano", provider="cpu")
    processor(monkeypatch, "amx_bf16")
    monkeypatch.setattr(openvino, "_devices", openvino._devices.__wrapped__)  # looks anew
    plugin = SimpleNamespace(get_library_path=lambda: str(tmp_path / "plugin.so"), get_ep_name=lambda: "OpenVINO")
    monkeypatch.setattr(openvino, "installed", lambda: what != "not installed")
    load: Callable[[str], Any] = lambda name: plugin  # noqa: E731
    if what == "broken import":
        load = importlib.import_module
        monkeypatch.setitem(sys.modules, openvino.PLUGIN, None)
    monkeypatch.setattr(openvino, "import_module", load)
    monkeypatch.setattr(openvino, "PLUGIN", "onnxruntime_ep_openvino" if what == "broken import" else "another")
    header = bytearray(Path(sys.executable).resolve().read_bytes()[:4096])
    header[18] = 0xF3  # RISC-V's, in ELF's header
    (tmp_path / "plugin.so").write_bytes(header)
    if what == "old onnxruntime":
        monkeypatch.delattr(ort, "register_execution_provider_library", raising=False)
        monkeypatch.setattr(ort, "__version__", "1.16.3")
    elif not hasattr(ort, "register_execution_provider_library"):
        what = "old onnxruntime"
    message = {
        "not installed": r"OpenVINO is not installed: pip install 'diinn\[openvino\]'",
        "old onnxruntime": r"OpenVINO needs ONNX Runtime 1\.23 or later, this is \S+: pip install -U onnxruntime",
        "another architecture": r"OpenVINO does not load \(.*plugin\.so.*\): pip install .* once more",
        "broken import": r"OpenVINO does not load \(.*onnxruntime_ep_openvino.*\): pip install .* once more",
    }[what]
    if what == "not installed":
        monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])  # not the registered one
    caplog.set_level("INFO")
    found, by = picture("nano")
    assert "encoder CPU" in by
    np.testing.assert_array_equal(found, right)
    missing = what in ("not installed", "old onnxruntime")
    (line,) = [x for x in logged(caplog, "INFO" if missing else "WARNING") if x.startswith("ONNX Runtime encodes: ")]
    assert re.search(message, line)
    assert "\n" not in line
    for options in ({"provider": "openvino"}, {"precision": "bf16"}):
        with pytest.raises(DiinnError, match=message):
            opened("nano", **options)


@needs_openvino
def test_the_environment_chooses_where_nothing_else_does(monkeypatch: Patch) -> None:
    processor(monkeypatch, "amx_bf16")
    monkeypatch.setenv("DIINN_CPU_ENCODER", "onnxruntime")
    assert "encoder CPU" in picture("nano")[1]
    assert "encoder OpenVINO fp16" in picture("nano", precision="fp16")[1]
    monkeypatch.setenv("DIINN_CPU_ENCODER", "openvino")
    processor(monkeypatch)
    assert "encoder OpenVINO fp32" in picture("nano")[1]
    assert "encoder CPU" in picture("nano", provider="cpu")[1]
    monkeypatch.setenv("DIINN_CPU_ENCODER", "openvina")
    with pytest.raises(InputError, match="unknown DIINN_CPU_ENCODER 'openvina': did you mean 'openvino'"):
        picture("nano")


needs_compiling = pytest.mark.skipif(
    not hasattr(ort, "ModelCompiler"), reason="this ONNX Runtime keeps nothing compiled"
)


@needs_openvino
@needs_compiling
@pytest.mark.parametrize("what", ["whole", "damaged", "another's", "no model"])
def test_a_compiled_model_is_kept_and_taken_if_it_is_whole_and_ours(
    monkeypatch: Patch, caplog: Log, tmp_path: Path, what: str
) -> None:
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "cache" / "engines"))
    monkeypatch.setenv("DIINN_CPU_DECODER", "onnxruntime")
    right, _ = picture("nano", precision="bf16")
    (kept,) = (tmp_path / "cache" / "kernels").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    written, good = kept.stat().st_mtime_ns, kept.read_bytes()
    if what == "damaged":
        kept.write_bytes(good[:5000] + b"x" + good[5001:])
    elif what == "another's":
        kept.chmod(0o666)
    elif what == "no model":
        compiling.keep(kept, b"compiled for another driver", "it")
    found, by = picture("nano", precision="bf16")
    assert "encoder OpenVINO bf16" in by
    np.testing.assert_array_equal(found, right)
    assert not logged(caplog)
    assert (kept.stat().st_mtime_ns == written) == (what == "whole")
    assert kept.stat().st_mode & 0o777 == 0o600
    assert len(compiling.read_kept(kept)) == len(good) - compiling.SEAL
    picture("nano", precision="fp16")
    picture("nano", provider="openvino", precision="fp32", threads=1)
    assert len([*kept.parent.iterdir()]) == 3


@needs_openvino
@pytest.mark.parametrize("what", ["an older ONNX Runtime", "no home folder", "no folder", "nothing compiles"])
def test_without_a_place_for_what_is_compiled_nothing_is_kept(
    monkeypatch: Patch, caplog: Log, tmp_path: Path, what: str
) -> None:
    monkeypatch.setenv("DIINN_CACHE", "/proc/none/engines")
    if what == "an older ONNX Runtime":
        monkeypatch.delattr(ort, "ModelCompiler", raising=False)
    elif what == "no home folder":
        monkeypatch.setattr(compiling, "cache_folder", missing)
    elif what == "nothing compiles":
        monkeypatch.setattr(ort, "ModelCompiler", missing, raising=False)
    monkeypatch.setenv("DIINN_CPU_DECODER", "onnxruntime")
    assert "encoder OpenVINO fp32" in picture("nano", provider="openvino", precision="fp32")[1]
    assert not logged(caplog)


def missing(*_: object, **__: object) -> Path:
    raise InputError("no home folder is known here")


RUN = ("--camera", "demo", "--out-size", "640x480", "--headless", "--provider", "openvino")


@needs_openvino
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stream_ends_by_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """Without a home folder or a cache that could be written: nothing is kept there."""
    (tmp_path / "home").mkdir(mode=0o500)
    command = [sys.executable, "-m", "diinn.runtime.cli.run", *RUN, "--model", "nano", "--log-level", "info"]
    environment = os.environ | {"HOME": str(tmp_path / "home"), "DIINN_CPU_DECODER": "onnxruntime"}
    process = subprocess.Popen(
        [*command, "--output", str(tmp_path / "out.mp4")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "encoder OpenVINO" in line
    time.sleep(0.5)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert "frames" in out
    assert "Traceback" not in err
    assert not [*(tmp_path / "home").iterdir()]


def test_the_soft_frame_is_the_golden_one_blurred() -> None:
    sharp, soft = golden.frame().astype(float), golden.soft_frame().astype(float)
    assert soft.shape == sharp.shape
    assert np.abs(np.diff(soft, axis=1)).mean() < np.abs(np.diff(sharp, axis=1)).mean() / 2
