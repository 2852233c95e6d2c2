"""ONNX Runtime, which does not report to anybody from here.

Its packages from 1.29 on keep a device id and a data base of events in the user's cache and send them to their maker,
from the moment the module is imported. Whoever wants that sets the variable to 0.
"""

import contextlib
import io
import logging
import os
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort", "providers"]
log = logging.getLogger(__name__)
SUFFIX = "ExecutionProvider"
# EXHAUSTIVE, its default, tries all of cuDNN's algorithms again at every new shape, seconds each; TF32 would make fp32
# a lesser fp16.
OPTIONS = {"CUDA": {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0"}}


def providers(name: str) -> list[tuple[str, dict[str, str]]]:
    """What ``InferenceSession`` takes for an execution provider, "CUDA" or "CPU", with our options; what that needs is
    loaded."""
    preload: Any = getattr(ort, "preload_dlls", None)  # from 1.21 on
    if name == "CUDA" and preload is not None:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):  # where frames may go
            preload()
        for line in said.getvalue().splitlines():
            log.debug("ONNX Runtime: %s", line)
    return [(name + SUFFIX, OPTIONS.get(name, {}))]
