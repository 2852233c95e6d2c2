"""ONNX Runtime, which does not report to anybody from here.

Its packages from 1.29 on keep a device id and a data base of events in the user's cache and send them to their maker,
from the moment the module is imported. Whoever wants that sets the variable to 0.
"""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

__all__ = ["ort"]
