"""ONNX Runtime's providers: options, libraries, and who is sent elsewhere; played where no GPU is."""

from pathlib import Path
from typing import Any

import pytest
from diinn.runtime import InputError, SuperResolver, driver, onnx_runtime
from diinn.runtime import bundle as bundles
from diinn.runtime.onnx_runtime import ort

Patch = pytest.MonkeyPatch


def test_cuda_is_not_tuned_anew_at_every_shape(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = []
    monkeypatch.setattr(ort, "preload_dlls", lambda: (loaded.append(1), print("Failed to load libcudnn.so.9")))
    assert onnx_runtime.providers("CUDA") == [("CUDAExecutionProvider", onnx_runtime.OPTIONS["CUDA"])]
    assert onnx_runtime.OPTIONS["CUDA"]["cudnn_conv_algo_search"] == "HEURISTIC"
    assert loaded == [1]
    assert capsys.readouterr().out == ""  # where frames may go
    assert onnx_runtime.providers("CPU") == [("CPUExecutionProvider", {})]
    assert loaded == [1]
    monkeypatch.delattr(ort, "preload_dlls")  # before 1.21
    assert onnx_runtime.providers("CUDA")[0][0] == "CUDAExecutionProvider"


@pytest.fixture
def asked(monkeypatch: Patch) -> list[Any]:
    """Providers that sessions were opened with, on a machine whose ONNX Runtime was built for CUDA."""
    found: list[Any] = []

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, content: bytes, options: Any, providers: Any) -> None:
            found.append(providers)
            self.says = [providers[0][0]]
            super().__init__(content, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return self.says

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    return found


CUDA, CPU = onnx_runtime.providers("CUDA"), onnx_runtime.providers("CPU")


def test_the_encoder_goes_to_a_gpu_that_answers(monkeypatch: Patch, asked: list[Any]) -> None:
    for missing, wanted, said in (
        ("", [CUDA, CPU], "encoder CUDA, CPU"),
        ("no NVIDIA driver here", [CPU, CPU], "(CPU"),
    ):
        monkeypatch.setattr(driver, "missing", lambda missing=missing: missing)
        asked.clear()
        with SuperResolver.open("nano", backend="onnxruntime") as resolver:
            assert asked == wanted
            assert said in resolver.backend.describe()
            many = resolver.backend.most_frames((640, 480))
            assert many is None if wanted[0] is CUDA else many == 1
    asked.clear()
    SuperResolver.open("nano", backend="onnxruntime", provider="cpu").close()
    assert asked == [CPU, CPU]


def test_libraries_that_do_not_load(monkeypatch: Patch, asked: list[Any], caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(driver, "missing", lambda: "")
    monkeypatch.setattr(ort.InferenceSession, "get_providers", lambda _: ["CPUExecutionProvider"])
    with pytest.raises(InputError, match="provider CUDA does not load here, its libraries are missing"):
        SuperResolver.open("nano", backend="onnxruntime", provider="cuda")
    SuperResolver.open("nano", backend="onnxruntime").close()
    assert [r.message for r in caplog.records if "the encoder runs on the CPU: provider CUDA" in r.message]


def test_auto_looks_at_the_provider_without_opening_a_session(trt: Patch, asked: list[Any], bundle_path: Path) -> None:
    from diinn.runtime.backends.base import BackendOptions
    from diinn.runtime.backends.cuda import CudaBackend

    assert CudaBackend.not_ready(bundles.load(bundle_path), BackendOptions()) == ""
    assert asked == []


@pytest.mark.parametrize("name", ["TensorRT", "tensorrt", "TensorrtExecutionProvider", "NvTensorRTRTX"])
def test_engines_nobody_compares_are_refused(monkeypatch: Patch, name: str) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(InputError, match=f"--provider {name}: .* use --backend tensorrt"):
        SuperResolver.open("nano", backend="onnxruntime", provider=name)
