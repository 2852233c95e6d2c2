"""Engines, deserialised: opened on a device, checked against the bundle, given shapes and memory, run."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diinn.runtime.bundles.bundle import Bundle
from diinn.runtime.engines import failure, profiles
from diinn.runtime.engines.cache import Identity, Key
from diinn.runtime.engines.profiles import Profile, Shape
from diinn.runtime.errors import DiinnError, InputError, OutOfMemory
from diinn.runtime.gpu.device import Device

if TYPE_CHECKING:
    import tensorrt as trt

log = logging.getLogger(__name__)


def tensors(bundle: Bundle, role: str) -> dict[str, bool]:
    """Names of an engine's inputs and outputs, and whether each is an input."""
    maps = [spec.name for spec in bundle.maps]
    if role == "encoder":
        return {"frame": True, **dict.fromkeys(maps, False)}
    return {**dict.fromkeys(maps, True), "query": True, "rgb": False}


class NotRunnable(DiinnError):
    """TensorRT does not take an engine."""


class Engine:
    """An engine ready to run on its device's stream.

    dtypes: float32 or float16 by tensor; shapes: of the inputs, and addresses of all, as last bound
    """

    def __init__(self, trt: Any, runtime: trt.Runtime, device: Device, data: bytes, what: str) -> None:
        """Raises DiinnError, naming ``what``, for data that is no engine of this TensorRT."""
        self._device, self._what = device, what
        with device.active():
            self._engine: trt.ICudaEngine = runtime.deserialize_cuda_engine(data)
            if self._engine is None:
                raise NotRunnable(f"TensorRT {trt.__version__} does not run {what}")
            self._context: trt.IExecutionContext = self._engine.create_execution_context()
            if self._context is None:  # the engine is good, but there was no memory for it
                raise _no_memory(device, what)
            ready = self._context.set_optimization_profile_async(0, device.stream)
        device.wait()
        if not ready:
            raise NotRunnable(f"TensorRT {trt.__version__} does not run {what}")
        # Not trt.nptype: 8.5's fails with the NumPy of today.
        kinds: dict[Any, np.dtype[Any]] = {
            trt.DataType.FLOAT: np.dtype(np.float32),
            trt.DataType.HALF: np.dtype(np.float16),
        }
        self.dtypes: dict[str, np.dtype[Any]] = {}
        self.inputs: dict[str, bool] = {}
        for i in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(i)
            kind = self._engine.get_tensor_dtype(name)
            if kind not in kinds:
                raise DiinnError(f"{what}: {name} is {kind}, neither fp32 nor fp16: build it again")
            self.dtypes[name] = kinds[kind]
            self.inputs[name] = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        self.shapes: Mapping[str, Shape] = {}
        self.addresses: Mapping[str, int] = {}

    def profile(self) -> Profile:
        """The shapes it was built for."""
        kinds: list[dict[str, Shape]] = [{}, {}, {}]
        for name in (name for name, given in self.inputs.items() if given):
            for kind, shape in zip(kinds, self._engine.get_tensor_profile_shape(name, 0), strict=True):
                kind[name] = tuple(shape)
        return Profile(*kinds)

    def bind(self, shapes: Mapping[str, Shape], addresses: Mapping[str, int]) -> bool:
        """Set the inputs' shapes and all tensors' memory; whether a shape is another than before."""
        changed = shapes != self.shapes
        before, self.addresses = self.addresses, {}
        with self._device.active():
            if changed:
                self._set_shapes(shapes)
            for name, address in addresses.items():
                if address != before.get(name) and not self._context.set_tensor_address(name, address):
                    raise DiinnError(f"TensorRT refuses the memory of {name}")
        self.addresses = dict(addresses)
        return changed

    def _set_shapes(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = {}
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise DiinnError(f"TensorRT refuses {name} of {profiles.text(shape)}")
        missing = self._context.infer_shapes()
        if missing:
            raise DiinnError(f"TensorRT needs the shape of {', '.join(missing)}: build the engines again")
        self.shapes = dict(shapes)

    def enqueue(self) -> None:
        """Put one run on the stream."""
        with self._device.active():
            done = self._context.execute_async_v3(self._device.stream)
        if not done:
            raise DiinnError(f"TensorRT failed to run {self._what}: see --log-level debug")


class EngineLoader:
    """TensorRT's runtime on one device: opens engines of one bundle."""

    def __init__(self, trt: Any, device: Device, bundle: Bundle) -> None:
        """Raises DiinnError where TensorRT does not start."""
        self._library, self._device, self._bundle = trt, device, bundle
        self.version: str = trt.__version__
        self._logger = _logger(trt)
        try:
            with device.active():
                self._runtime: trt.Runtime = trt.Runtime(self._logger)
        except TypeError:  # "factory function returned nullptr"
            raise DiinnError(
                f"TensorRT {trt.__version__} does not start: check that the driver is new enough"
            ) from None

    def open(self, data: bytes, role: str) -> Engine:
        """The engine in ``data``. Raises DiinnError unless its tensors are those of the bundle's ``role``."""
        opened = self._deserialised(data, f"the {role} engine it built")
        self._check(opened, role)
        return opened

    def _deserialised(self, data: bytes, what: str) -> Engine:
        self._logger.errors.clear()
        try:
            return Engine(self._library, self._runtime, self._device, data, what)
        except NotRunnable:
            if any(failure.is_memory(error) for error in self._logger.errors):
                raise _no_memory(self._device, what) from None
            raise

    def _check(self, opened: Engine, role: str) -> None:
        wanted = tensors(self._bundle, role)
        if opened.inputs != wanted:
            raise DiinnError(
                f"the {role} engine has {', '.join(opened.inputs)}, {self._bundle.name} has {', '.join(wanted)}: "
                "build it again"
            )
        for name in ("frame", "query", "rgb"):
            if name in wanted and opened.dtypes[name] != np.float32:
                raise DiinnError(f"the {role} engine's {name} is {opened.dtypes[name]}, not float32: build it again")

    def adopt(self, path: Path, identities: Sequence[Identity]) -> tuple[Key, bytes]:
        """An engine file that the user trusts, and its key; its role and shapes are read from the file.

        identities: of both roles. Raises InputError for a file that is no engine of this bundle and TensorRT.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read engine {str(path)!r}: {error.strerror}") from None
        try:
            opened = self._deserialised(data, str(path))
            for identity in identities:
                if opened.inputs == tensors(self._bundle, identity.role):
                    self._check(opened, identity.role)
                    if identity.role == "decoder":
                        profiles.queries(self._bundle, opened.profile())
                    return Key(identity, opened.profile()), data
        except DiinnError as error:
            raise InputError(f"--trust-engine {str(path)!r}: {error}") from None
        raise InputError(
            f"--trust-engine {str(path)!r}: its tensors {', '.join(opened.inputs)} are neither those of an encoder nor "
            f"of a decoder of {self._bundle.name}"
        )


def _no_memory(device: Device, what: str) -> OutOfMemory:
    free, total = device.memory()
    return OutOfMemory(
        f"not enough device memory to open {what} ({free / 2**20:.0f} of {total / 2**20:.0f} MiB are free): "
        "close other programs, or use fewer cameras or smaller frames"
    )


@functools.cache
def _logger(trt: Any) -> Any:
    """A logger that passes TensorRT's messages while engines run to our log; ``errors`` are the last ones.

    One a process, kept for good: TensorRT uses the first that it is given, at any time.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=8)

        def log(self, severity: Any, msg: str) -> None:
            bad = severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR)
            if bad:
                self.errors.append(msg)
            log.log(logging.ERROR if bad else logging.DEBUG, "TensorRT: %s", msg)

    return Logger()
