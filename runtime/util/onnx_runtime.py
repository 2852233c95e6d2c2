"""ONNX Runtime, imported with its telemetry off.

Its packages from 1.29 on keep a device id and a database of events in the user's cache and send them to their maker,
from the moment the module is imported. Set the variable to 0 to allow that.
"""

import contextlib
import io
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from diinn.runtime.errors import BundleError, DiinnError, InputError, OutOfMemory, unknown
from diinn.runtime.util import cuda_driver

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

ort.set_default_logger_severity(4)  # errors are reported once, by us
__all__ = ["check_tensors", "failed", "full_name", "open_session", "ort", "providers", "session_options"]
log = logging.getLogger(__name__)
Tensor = tuple[Any, list[int | None]]  # NumPy's dtype, and sizes where they are fixed
DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}
SUFFIX = "ExecutionProvider"
LIBRARIES = "its libraries are missing or do not fit: pip install 'onnxruntime-gpu[cuda,cudnn]', update the driver"
# EXHAUSTIVE, its default, tries all of cuDNN's algorithms again at every new shape, seconds each; TF32 would make fp32
# a lesser fp16, and has an option for it from 1.18 on: what a version does not know, it refuses.
OPTIONS = {"CUDA": {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}}
SINCE = {"use_tf32": (1, 18)}
NO_MEMORY = re.compile(
    r"failed to allocate memory|bad_alloc|out of memory|alloc_failed|available memory of .* smaller than requested"
)


def full_name(provider: str) -> str:
    """Full name of an execution provider given as "cpu", "CUDA" or "CUDAExecutionProvider"; InputError for others."""
    available: dict[str, str] = {p.removesuffix(SUFFIX).lower(): p for p in ort.get_available_providers()}
    key = provider.removesuffix(SUFFIX).lower()
    if "tensorrt" in key:
        raise InputError(
            f"--provider {provider}: its engines would not be compared with the CPU: use --backend tensorrt"
        )
    if key not in available:
        raise InputError(unknown("provider", provider, available) + "; another build of onnxruntime may offer it")
    return available[key]


def providers(name: str) -> list[tuple[str, dict[str, str]]]:
    """What ``InferenceSession`` takes for an execution provider, "CUDA" or "CPU", with our options.

    Also loads the provider's libraries.
    """
    preload: Any = getattr(ort, "preload_dlls", None)  # from 1.21 on
    if name == "CUDA" and preload is not None:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):  # where frames may go
            preload()
        for line in printed.getvalue().splitlines():
            log.debug("ONNX Runtime: %s", line)
    here = tuple(int(number) for number in re.findall(r"\d+", ort.__version__)[:2])
    return [(name + SUFFIX, {key: value for key, value in OPTIONS.get(name, {}).items() if here >= SINCE.get(key, ())})]


def open_session(
    content: bytes, path: Path, provider: str, options: Any = None, remedy: str = "give --provider cpu"
) -> ort.InferenceSession:
    """A session of a graph on one provider, "CUDA" or "CPU", and on no other.

    path: where the graph is from, for messages; remedy: what to do where the provider does not start, apart from
        updating the driver

    Raises BundleError for a graph that cannot be opened, InputError for a provider, OutOfMemory.
    """
    try:
        # Its own fallback prints to standard output, where frames may go, and hides the reason.
        session = ort.InferenceSession(content, options, providers=providers(provider), enable_fallback=0)
    except Exception as error:  # ONNX Runtime raises a dozen unrelated types
        why = failed(error)
        if isinstance(why, OutOfMemory):
            raise why from error
        if provider != "CPU":
            raise InputError(
                f"provider {provider} does not start here ({_first(error)}): {remedy}, or update the driver"
            ) from error
        raise BundleError(f"ONNX Runtime cannot open {path}: {_first(error)}; export the bundle again") from error
    if session.get_providers()[0] != provider + SUFFIX:  # it falls back to the CPU and only logs it
        lacking = cuda_driver.missing() or LIBRARIES if provider == "CUDA" else "install its libraries"
        raise InputError(f"provider {provider} does not load here: {lacking}, or {remedy}")
    return session


def session_options(threads: int) -> Any:
    """How sessions are opened that frames wait for."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is reported once, by us
    # Without its arena and its planned pattern ONNX Runtime gives memory back as soon as it can: half the
    # peak on large frames, at the same speed.
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    # A thread that spins after the encoder would take the cores the decoder's threads need.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def check_tensors(
    session: ort.InferenceSession, path: Path, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]
) -> None:
    """BundleError unless a session's inputs and outputs have these names, dtypes and shapes.

    path: where the graph is from
    """
    for kind, wanted, found in (("input", inputs, session.get_inputs()), ("output", outputs, session.get_outputs())):
        have = {t.name: (t.shape, t.type) for t in found}
        if have.keys() != wanted.keys():
            raise BundleError(f"{path} has {kind}s {sorted(have)}, bundle.json says {sorted(wanted)}: export it again")
        for name, (dtype, shape) in wanted.items():
            got, got_type = have[name]
            fits = len(got) == len(shape) and all(w is None or g == w for g, w in zip(got, shape, strict=True))
            if not fits or DTYPES.get(got_type) is not dtype:
                raise BundleError(
                    f"{path}: {kind} {name} is {got_type}{got}, expected {np.dtype(dtype).name}{shape}: export it again"
                )


def failed(error: Exception) -> DiinnError:
    """What an exception of ONNX Runtime's means: OutOfMemory where it lacked memory, of the machine or of a GPU."""
    if isinstance(error, MemoryError) or NO_MEMORY.search(str(error).lower()):
        return OutOfMemory(f"ONNX Runtime is out of memory ({_first(error)}): use fewer cameras or smaller frames")
    return DiinnError(f"ONNX Runtime failed while running: {_first(error)}")


def _first(error: Exception) -> str:
    """The first line of its message."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
