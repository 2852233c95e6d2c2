"""Inference backends, one file each; ``open_backend`` picks one by name."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from diinn.runtime.errors import InputError, unknown

if TYPE_CHECKING:
    from diinn.runtime.backends.base import Backend, BackendOptions
    from diinn.runtime.bundle import Bundle

# name: (module, class, what to install when the module's library is missing); best first for "auto"
BACKENDS = {
    "onnxruntime": ("diinn.runtime.backends.onnxruntime", "OnnxRuntimeBackend", "pip install 'diinn[cpu]'"),
}


def open_backend(name: str, bundle: Bundle, options: BackendOptions) -> Backend:
    """The backend called ``name``, or for "auto" the first whose library is installed."""
    if name != "auto" and name not in BACKENDS:
        raise InputError(unknown("backend", name, [*BACKENDS, "auto"]))
    missing = []
    for module, cls, remedy in [BACKENDS[name]] if name != "auto" else BACKENDS.values():
        try:
            backend = getattr(import_module(module), cls)
        except ImportError as error:
            missing.append(f"{' '.join(str(error).split())}: {remedy}")
            continue
        return backend(bundle, options)  # type: ignore[no-any-return]
    raise InputError(f"no backend for {bundle.name}: " + "; ".join(missing))
