"""OpenVINO as a plugin of ONNX Runtime: its devices, the precisions that pay off on them, and sessions.

The plugin is as fast as the package ``openvino``, needs no import of 0.2 s, and reports nothing: that package sends its
maker an event whenever it is imported.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import platform
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

from diinn.runtime.backends.base import BackendOptions
from diinn.runtime.bundles import golden
from diinn.runtime.bundles.bundle import Bundle
from diinn.runtime.cpu.compiler import features
from diinn.runtime.engines import verify
from diinn.runtime.errors import BundleError, DiinnError, InputError, OutOfMemory, unknown
from diinn.runtime.geometry import grid
from diinn.runtime.util import compiling
from diinn.runtime.util.onnx_runtime import SUFFIX, failed, ort
from diinn.runtime.util.private_files import FileRejected

log = logging.getLogger(__name__)
PLUGIN = "onnxruntime_ep_openvino"
CHOICE = "DIINN_CPU_ENCODER"  # of the environment: where neither provider nor precision is asked for
CHOICES = ("openvino", "onnxruntime")
REMEDY = "pip install 'diinn[openvino]'"
PREFIX = "openvino"  # of --provider: openvino, openvino:gpu
HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
HALVES = ("bf16", "fp16")  # what ONNX Runtime does not compute in itself
# What a processor needs for a precision to pay off, the best first. OpenVINO offers bf16 to every AVX-512, but without
# AMX it took 1.5 times as long as ONNX Runtime's fp32 with the instruction for it, 4.5 times as long without.
WORTHWHILE = {"fp16": "amx_fp16", "bf16": "amx_bf16"}
# dB that a picture of ``FAITHFUL`` dB may lose by a precision; better pictures lose more.
ALLOWED_LOSS = {"fp32": 0.0005, "fp16": 0.02, "bf16": 0.05}
FAITHFUL = 40.0
# Allowed difference to the golden sample, whose frame is harder than pictures; fp32 has the sample's own.
TOLERANCES = {"fp16": verify.TOLERANCES["fp16"], "bf16": golden.LARGEST_TOLERANCE}
CHUNK = 8192  # queries decoded at once
_LOCK = Lock()
NARROW = 64  # channels of all of a query's samples that ONNX Runtime decodes as fast


def installed() -> bool:
    """Whether the plugin is there; it may still not load."""
    return importlib.util.find_spec(PLUGIN) is not None


def plugin_version() -> str:
    """The plugin's version; PackageNotFoundError where it is not installed."""
    return version(PLUGIN.replace("_", "-"))


def worthwhile(device: str) -> list[str]:
    """Precisions in which a device is much faster than in fp32, the best first; often none."""
    if device != "CPU":
        return ["fp16"]
    here = features()
    return [precision for precision, flag in WORTHWHILE.items() if flag in here]


def largest_gap(precision: str) -> float:
    """Largest rms difference to fp32 of a picture in units of [0, 1], by ``ALLOWED_LOSS``.

    A picture of P dB has a mean square error of 10^(-P / 10), to which that of the precision adds.
    """
    return float((10 ** (-FAITHFUL / 10) * (10 ** (ALLOWED_LOSS[precision] / 10) - 1)) ** 0.5)


def plans(bundle: Bundle, device: str, precisions: Sequence[str], *, may_decode: bool) -> Iterator[tuple[str, bool]]:
    """What to try of ``precisions``, the fastest first: a precision, and whether OpenVINO decodes in it too.

    In a precision that is worthwhile it decodes faster than ONNX Runtime where matrix products outweigh the rest:
    LIIF's decoder 32 wide 1.2 times as fast, 256 wide 5 times. DIINN's 32 wide and Meta-SR's took longer.
    """
    wide = bundle.layout is not grid.CORNER and bundle.maps[0].channels * bundle.layout.samples > NARROW
    for precision in precisions:
        if may_decode and wide and device == "CPU" and precision in worthwhile(device):
            yield precision, True
        yield precision, False


def named(device: str, precision: str) -> str:
    """What computes, for users."""
    return f"OpenVINO {precision}" if device == "CPU" else f"OpenVINO {device} {precision}"


def device_of(provider: str | None) -> str | None:
    """OpenVINO's device that ``--provider`` names ("CPU" for "openvino"), None for other providers.

    Raises:
        InputError: It is one that takes frames of a single size alone.
    """
    name, _, device = (provider or "").lower().partition(":")
    if name != PREFIX:
        return None
    if device.startswith("npu"):
        raise InputError(
            f"provider {provider}: OpenVINO's NPU takes frames of one size alone: use openvino or openvino:gpu"
        )
    return device.upper() or "CPU"


def asked_for(options: BackendOptions) -> str | None:
    """The device that is asked for, by its name or by a precision that only OpenVINO has; None for none.

    Raises:
        InputError: It does not compute in the precision that is asked for, or the environment names no encoder.
    """
    wanted, provider, chosen = options.precision, options.provider, os.environ.get(CHOICE)
    if chosen is not None and chosen not in CHOICES:
        raise InputError(unknown(CHOICE, chosen, CHOICES))
    named = (provider or "").lower() == PREFIX
    if named and not installed() and "OpenVINO" + SUFFIX in ort.get_available_providers():
        return None  # a build of ONNX Runtime with a provider of that name
    device = device_of(chosen if provider is None and wanted is None else provider)
    if device is None and provider is None and wanted in HALVES:
        return "CPU"
    if device is not None and wanted not in (None, *HINTS):
        raise InputError(f"OpenVINO computes in {', '.join(HINTS)}, not {wanted}: use --provider cpu")
    return device


def devices() -> dict[str, Any]:
    """OpenVINO's devices here as ONNX Runtime lists them, by name: "CPU", "GPU", "GPU.1".

    Raises:
        InputError: The plugin is not there, or ONNX Runtime is too old for it.
        DiinnError: It does not load.
    """
    with _LOCK:  # threads may open models at once
        found = _devices()
    if isinstance(found, DiinnError):
        raise found
    return found


def require(device: str) -> Any:
    """A device as ONNX Runtime knows it.

    Raises:
        InputError: There is no such device, or OpenVINO is not there.
        DiinnError: OpenVINO does not load.
    """
    here = devices()
    if device not in here:
        raise InputError(f"OpenVINO has no device {device} here, only {', '.join(here) or 'none'}: use --provider cpu")
    return here[device]


@functools.cache
def _devices() -> dict[str, Any] | DiinnError:
    """``devices``, or why there are none: a library is registered once a process."""
    if not installed() and platform.machine() not in ("x86_64", "AMD64"):
        return InputError("OpenVINO's plugin is for x86-64 alone: use --precision fp32, or --backend tensorrt for fp16")
    if not installed():
        return InputError(f"OpenVINO is not installed: {REMEDY}")
    register = getattr(ort, "register_execution_provider_library", None)
    if register is None or not hasattr(ort.SessionOptions, "add_provider_for_devices"):
        return InputError(
            f"OpenVINO needs ONNX Runtime 1.23 or later, this is {ort.__version__}: pip install -U onnxruntime"
        )
    try:
        plugin = import_module(PLUGIN)
        register(PLUGIN, plugin.get_library_path())
        name = plugin.get_ep_name()
        return {d.ep_metadata["ov_device"]: d for d in ort.get_ep_devices() if d.ep_name == name}
    except Exception as error:  # whatever a broken installation raises
        return DiinnError(f"OpenVINO does not load ({' '.join(str(error).split())[:200]}): {REMEDY} once more")


def open_session(
    content: bytes, path: Path, device: str, precision: str, threads: int, options: Any
) -> ort.InferenceSession:
    """A session of an fp32 graph on one of OpenVINO's devices.

    Args:
        content: The graph.
        path: Where it is from, for messages.
        device: As ``devices`` names it.
        precision: What it computes in: "fp32", "bf16" or "fp16".
        threads: OpenVINO's on the CPU.
        options: A ``SessionOptions`` for this session alone.

    Raises:
        InputError: There is no such device, or it does not start.
        DiinnError: OpenVINO does not load.
        BundleError: The graph cannot be opened.
        OutOfMemory: There is too little memory left.
    """
    settings = {"INFERENCE_PRECISION_HINT": HINTS[precision]}
    if device == "CPU":  # all threads on one frame, and none bound to a core that the decoder's threads want
        settings |= {"INFERENCE_NUM_THREADS": str(threads), "NUM_STREAMS": "1", "ENABLE_CPU_PINNING": "NO"}
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")  # no part in another precision
    try:
        options.add_provider_for_devices([require(device)], {"load_config": json.dumps({device: settings})})
        if device != "CPU":  # what is compiled for a GPU holds for one driver alone
            return ort.InferenceSession(content, options)
        return _kept_session(content, path.stem, f"{settings}", options)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        why = failed(error)
        if isinstance(why, OutOfMemory):
            raise why from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        kind = BundleError if device == "CPU" else InputError
        raise kind(f"OpenVINO's {device} does not open {path} ({(lines or ['?'])[-1]}): use --provider cpu") from error


def _kept_session(graph: bytes, name: str, settings: str, options: Any) -> ort.InferenceSession:
    """A session on the CPU: of a graph as it was compiled before, if that is kept, else of what is kept now.

    Args:
        graph: Its bytes.
        name: Of the graph.
        settings: OpenVINO's.
        options: Of the session.
    """
    compiler = getattr(ort, "ModelCompiler", None)
    content = graph
    if compiler is None:
        return ort.InferenceSession(content, options)
    versions = plugin_version(), ort.__version__, platform.machine()
    key = (hashlib.sha256(graph).hexdigest(), *versions, *features(), settings)
    try:
        kept = compiling.kept(f"openvino-{name}", " ".join(key), ".onnx")
    except InputError:  # no home folder
        return ort.InferenceSession(content, options)
    with contextlib.suppress(FileRejected):
        content = compiling.read_kept(kept)
        try:
            return ort.InferenceSession(content, options)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            log.info("compiling %s again for OpenVINO: %s", name, " ".join(str(error).split())[:200])
    try:
        content = compiler(options, graph, embed_compiled_data_into_model=True).compile_to_bytes()
    except Exception as error:
        log.info("%s, compiled for OpenVINO, is not kept: %s", name, " ".join(str(error).split())[:200])
        content = graph
    else:
        compiling.keep(kept, content, f"{name} for OpenVINO", logging.INFO)
    return ort.InferenceSession(content, options)
