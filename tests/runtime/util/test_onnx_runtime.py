"""ONNX Runtime's providers: options, libraries, and who is sent elsewhere; played where no GPU is."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diinn.runtime import InputError, SuperResolver
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.errors import OutOfMemory
from diinn.runtime.sources import demo
from diinn.runtime.util import cuda_driver, onnx_runtime
from diinn.runtime.util.onnx_runtime import ort

Patch = pytest.MonkeyPatch


def test_cuda_is_not_tuned_anew_at_every_shape(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = []
    monkeypatch.setattr(ort, "__version__", "1.21.0")
    preload = lambda: (loaded.append(1), print("Failed to load libcudnn.so.9"))  # noqa: E731
    monkeypatch.setattr(ort, "preload_dlls", preload, raising=False)
    assert onnx_runtime.providers("CUDA") == [("CUDAExecutionProvider", onnx_runtime.OPTIONS["CUDA"])]
    assert onnx_runtime.OPTIONS["CUDA"]["cudnn_conv_algo_search"] == "HEURISTIC"
    assert loaded == [1]
    assert capsys.readouterr().out == ""  # where frames may go
    assert onnx_runtime.providers("CPU") == [("CPUExecutionProvider", {})]
    assert loaded == [1]
    monkeypatch.delattr(ort, "preload_dlls")  # before 1.21
    assert onnx_runtime.providers("CUDA")[0][0] == "CUDAExecutionProvider"
    for version, given in (("1.16.3", False), ("1.17.1", False), ("1.18.0", True), ("2.0.0rc1", True)):
        monkeypatch.setattr(ort, "__version__", version)
        assert ("use_tf32" in onnx_runtime.providers("CUDA")[0][1]) is given  # an option it does not know is refused


@pytest.fixture
def asked(monkeypatch: Patch) -> list[Any]:
    """Providers that sessions were opened with, on a machine whose ONNX Runtime was built for CUDA. ``broken`` says
    what goes wrong with that provider."""
    found: list[Any] = []

    class Session(ort.InferenceSession):  # type: ignore[misc]
        broken = ""

        def __init__(self, content: bytes, options: Any, providers: Any, enable_fallback: int) -> None:
            assert enable_fallback == 0  # it prints to standard output
            found.append(providers)
            self.says = [providers[0][0]]
            if "CUDA" in self.says[0] and self.broken.startswith("opening: "):
                raise RuntimeError(self.broken)
            super().__init__(content, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return self.says

        def run(self, outputs: list[str], feed: dict[str, Any]) -> list[Any]:
            made = super().run(outputs, feed)
            if "CUDA" not in self.says[0] or not self.broken:
                return made  # type: ignore[no-any-return]
            if self.broken in ("wrong", "nan"):
                return [values + np.float32("nan" if self.broken == "nan" else 1) for values in made]
            raise RuntimeError(self.broken)

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    return found


CUDA, CPU = onnx_runtime.providers("CUDA"), onnx_runtime.providers("CPU")


def test_the_encoder_goes_to_a_gpu_that_answers(
    monkeypatch: Patch, asked: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    for missing, wanted, message in (
        ("", [CPU, CPU, CUDA], "encoder CUDA, decoder CPU"),
        ("no NVIDIA driver here", [CPU, CPU], "encoder CPU, decoder CPU"),
    ):
        monkeypatch.setattr(cuda_driver, "missing", lambda missing=missing: missing)
        asked.clear()
        with SuperResolver.open("nano", backend="onnxruntime", decoder="onnx") as resolver:
            assert asked == wanted
            assert message in resolver.backend.describe()
            warned = [f"the encoder runs on the CPU: {missing}"] if missing else []
            assert [r.message for r in caplog.records if r.levelname == "WARNING"] == warned
            many = resolver.backend.max_batch((640, 480))
            assert many is None if CUDA in wanted else many == 1
    asked.clear()
    caplog.clear()
    SuperResolver.open("nano", backend="onnxruntime", provider="cpu", decoder="onnx").close()
    assert asked == [CPU, CPU]
    assert not caplog.records


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("[ONNXRuntimeError] : no kernel image is available", "failed while running: .* no kernel image is available"),
        ("opening: CUDA failure 35: driver is insufficient", "provider CUDA does not start here .*CUDA failure 35"),
        ("Failed to allocate memory for requested buffer", "is out of memory .*Failed to allocate"),
        ("wrong", r"provider CUDA differs by \S+ from it \(tolerance"),
        ("nan", r"provider CUDA differs by nan from it \(tolerance"),
    ],
)
def test_a_gpu_that_opens_and_does_not_work_leaves_the_cpu(
    monkeypatch: Patch, asked: list[Any], caplog: pytest.LogCaptureFixture, broken: str, reason: str
) -> None:
    monkeypatch.setattr(cuda_driver, "missing", lambda: "")
    frame = demo.frame(0, (40, 30))
    with SuperResolver.open("nano", backend="onnxruntime", provider="cpu") as resolver:
        right = resolver.resize(frame, (60, 50))
    monkeypatch.setattr(ort.InferenceSession, "broken", broken)
    with SuperResolver.open("nano", backend="onnxruntime") as resolver:
        assert "encoder CPU" in resolver.backend.describe()
        np.testing.assert_array_equal(resolver.resize(frame, (60, 50)), right)
    (message,) = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert re.match(f"the encoder runs on the CPU: .*{reason}", message)


def test_who_asks_for_a_gpu_is_told_why_it_does_not_start(monkeypatch: Patch, asked: list[Any]) -> None:
    monkeypatch.setattr(ort.InferenceSession, "broken", "opening: CUDA failure 35: driver is insufficient\n at x.cc")
    with pytest.raises(InputError) as caught:
        SuperResolver.open("nano", backend="onnxruntime", provider="cuda")
    assert str(caught.value) == (
        "provider CUDA does not start here (opening: CUDA failure 35: driver is insufficient): "
        "give --provider cpu, or update the driver"
    )


@pytest.mark.parametrize(
    "message",
    [
        "Failed to allocate memory for requested buffer of size 99",
        "std::bad_alloc",
        "CUDA failure 2: out of memory ; GPU=0",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "Available memory of 5 is smaller than requested bytes of 9",
    ],
)
def test_memory_is_told_from_other_failures(message: str) -> None:
    found = onnx_runtime.failed(RuntimeError(f"Non-zero status code returned while running Conv\n{message}"))
    assert isinstance(found, OutOfMemory)
    assert isinstance(onnx_runtime.failed(MemoryError()), OutOfMemory)
    assert not isinstance(onnx_runtime.failed(RuntimeError("no kernel image is available")), OutOfMemory)


def test_libraries_that_do_not_load(monkeypatch: Patch, asked: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda _: ["CPUExecutionProvider"])
    for missing, hint in (
        ("", r"its libraries .*pip install 'onnxruntime-gpu\[cuda"),
        ("no driver", "no driver, or"),
    ):
        monkeypatch.setattr(cuda_driver, "missing", lambda missing=missing: missing)
        with pytest.raises(InputError, match=f"provider CUDA does not load here: {hint}"):
            SuperResolver.open("nano", backend="onnxruntime", provider="cuda")
    monkeypatch.setattr(cuda_driver, "missing", lambda: "")
    SuperResolver.open("nano", backend="onnxruntime").close()
    assert [r.message for r in caplog.records if "the encoder runs on the CPU: provider CUDA" in r.message]


def test_auto_looks_at_the_provider_without_opening_a_session(trt: Patch, asked: list[Any], bundle_path: Path) -> None:
    from diinn.runtime.backends.base import BackendOptions
    from diinn.runtime.backends.fused import CudaBackend

    assert CudaBackend.not_ready(bundles.load(bundle_path), BackendOptions()) == ""
    assert asked == []


@pytest.mark.parametrize("name", ["TensorRT", "tensorrt", "TensorrtExecutionProvider", "NvTensorRTRTX"])
def test_engines_nobody_compares_are_refused(monkeypatch: Patch, name: str) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(InputError, match=f"--provider {name}: .* use --backend tensorrt"):
        SuperResolver.open("nano", backend="onnxruntime", provider=name)
