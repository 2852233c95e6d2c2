"""NVIDIA's runtime compiler, a wheel of its own: kernels to machine code where there is no nvcc."""

from __future__ import annotations

import contextlib
from importlib import metadata
from pathlib import Path
from typing import Any

from diinn.runtime.errors import DiinnError

FLAGS = ("-std=c++17",)
WHEELS = ("cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc-cu11")


def wheels() -> str:
    """The versions of its wheels that are installed; nothing is loaded."""
    found = []
    for name in WHEELS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def version() -> str:
    """Of the CUDA that it belongs to, like "12.9"; empty where it or ``cuda.bindings`` is missing."""
    try:
        from cuda.bindings import nvrtc

        failed, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError):  # no binding, or no library that fits it
        return ""
    return "" if failed else f"{major}.{minor}"


def codes() -> set[str]:
    """The architectures that it compiles for, like "87"."""
    from cuda.bindings import nvrtc

    failed, count = nvrtc.nvrtcGetNumSupportedArchs()
    if failed:
        return set()
    return {str(code) for code in nvrtc.nvrtcGetSupportedArchs()[1][:count]}


def cubin(source: Path, capability: str) -> bytes:
    """Machine code of a .cu file for compute ``capability`` ("8.7"). Raises DiinnError with the first error."""
    from cuda.bindings import nvrtc

    flags = (*FLAGS, f"--gpu-architecture=sm_{capability.replace('.', '')}", f"--include-path={source.parent}")
    program = _checked(nvrtc.nvrtcCreateProgram(source.read_bytes(), source.name.encode(), 0, [], []))
    try:
        if nvrtc.nvrtcCompileProgram(program, len(flags), [flag.encode() for flag in flags])[0]:
            output = bytearray(_checked(nvrtc.nvrtcGetProgramLogSize(program)))
            _checked(nvrtc.nvrtcGetProgramLog(program, output))
            lines = output.rstrip(b"\0").decode(errors="replace").splitlines()
            wrong = next((line for line in lines if "error" in line.lower()), "it says nothing")
            raise DiinnError(f"NVRTC cannot compile {source.name}: {wrong.strip()}")
        code = bytearray(_checked(nvrtc.nvrtcGetCUBINSize(program)))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        return bytes(code)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _checked(answer: tuple[Any, ...]) -> Any:
    failed, *values = answer
    if failed:
        raise DiinnError(f"NVRTC failed: {failed.name}")
    return values[0] if values else None
