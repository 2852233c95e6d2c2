"""Inference backends, one file each."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from diinn.runtime.errors import InputError, unknown

if TYPE_CHECKING:
    from diinn.runtime.backends.base import Backend

# name: (module, class, what to install when the module's library is missing); best first for "auto"
BACKENDS = {
    "cuda": ("diinn.runtime.backends.fused", "CudaBackend", "pip install 'diinn[cuda]'"),
    "tensorrt": ("diinn.runtime.backends.tensorrt", "TensorRtBackend", "pip install 'diinn[cuda]'"),
    "onnxruntime": ("diinn.runtime.backends.onnxruntime", "OnnxRuntimeBackend", "pip install 'diinn[cpu]'"),
}
# What each of them decodes with: a kernel of its own, a TensorRT engine, a graph.
DECODERS = {"cuda": ("fused",), "tensorrt": ("engine",), "onnxruntime": ("fused", "onnx")}


def candidates(name: str, decoder: str | None = None) -> list[str]:
    """The backends to try for ``name``, in order: itself, or all for "auto"; those that have ``decoder``."""
    if name != "auto" and name not in BACKENDS:
        raise InputError(unknown("backend", name, [*BACKENDS, "auto"]))
    if decoder is None:
        return [*BACKENDS] if name == "auto" else [name]
    have = [backend for backend, decoders in DECODERS.items() if decoder in decoders]
    if not have:
        raise InputError(unknown("decoder", decoder, sorted({d for decoders in DECODERS.values() for d in decoders})))
    if name not in ("auto", *have):
        raise InputError(f"backend {name} has no {decoder} decoder, only {' or '.join(have)}: leave out one of them")
    return have if name == "auto" else [name]


def load(name: str) -> type[Backend]:
    """The class of a backend; InputError, with what to install, where its library is missing."""
    module, cls, remedy = BACKENDS[name]
    try:
        found: type[Backend] = getattr(import_module(module), cls)
    except ImportError as error:
        raise InputError(f"{' '.join(str(error).split())}: {remedy}") from None
    return found
