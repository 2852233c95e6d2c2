"""ONNX Runtime's providers: options, libraries, and who is sent elsewhere; played where no GPU is."""

from typing import Any

import pytest
from diinn.runtime import InputError, SuperResolver, onnx_runtime
from diinn.runtime.onnx_runtime import ort

Patch = pytest.MonkeyPatch


def test_cuda_is_not_tuned_anew_at_every_shape(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = []
    monkeypatch.setattr(ort, "preload_dlls", lambda: (loaded.append(1), print("Failed to load libcudnn.so.9")))
    assert onnx_runtime.providers("CUDA") == [("CUDAExecutionProvider", {"cudnn_conv_algo_search": "HEURISTIC"})]
    assert loaded == [1]
    assert capsys.readouterr().out == ""  # where frames may go
    assert onnx_runtime.providers("CPU") == [("CPUExecutionProvider", {})]
    assert loaded == [1]
    monkeypatch.delattr(ort, "preload_dlls")  # before 1.21
    assert onnx_runtime.providers("CUDA")[0][0] == "CUDAExecutionProvider"


def test_what_the_backend_asks_for(monkeypatch: Patch) -> None:
    asked: list[Any] = []

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, content: bytes, options: Any, providers: Any) -> None:
            asked.append(providers)
            super().__init__(content, options, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    with pytest.raises(InputError, match="provider CUDA does not load here, its libraries are missing"):
        SuperResolver.open("nano", backend="onnxruntime", provider="cuda")
    assert asked == [onnx_runtime.providers("CUDA")]


@pytest.mark.parametrize("name", ["TensorRT", "tensorrt", "TensorrtExecutionProvider", "NvTensorRTRTX"])
def test_engines_nobody_compares_are_refused(monkeypatch: Patch, name: str) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["TensorrtExecutionProvider", "CPUExecutionProvider"])
    with pytest.raises(InputError, match=f"--provider {name}: .* use --backend tensorrt"):
        SuperResolver.open("nano", backend="onnxruntime", provider=name)
