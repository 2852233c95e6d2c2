"""The one door to CUDA: device memory, pinned host memory, a stream, kernels, graphs. On pycuda.

Another binding would replace this file alone. Everything runs in the device's primary context, which TensorRT and ONNX
Runtime share, on one stream of its own. Errors of the driver become DiinnError.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import DiinnError, InputError

Array = npt.NDArray[Any]
_CAPTURE_RELAXED = 2  # CU_STREAM_CAPTURE_MODE_RELAXED


class Graph:
    """Captured work that can be replayed; made by ``Device.capture``."""

    def __init__(self, driver: ctypes.CDLL, executable: ctypes.c_void_p) -> None:
        self._driver, self._executable = driver, executable

    def launch(self, stream: int) -> None:
        _checked(self._driver.cuGraphLaunch(self._executable, ctypes.c_void_p(stream)), "cuGraphLaunch")

    def free(self) -> None:
        _checked(self._driver.cuGraphExecDestroy(self._executable), "cuGraphExecDestroy")


class Device:
    """One CUDA device: its primary context, one non-default stream, and what was allocated on it."""

    def __init__(self, ordinal: int = 0) -> None:
        """Raises InputError where pycuda, the driver or the device is missing."""
        try:
            import pycuda.driver as driver

            driver.init()
            count = driver.Device.count()
        except ImportError as error:
            raise InputError(f"no CUDA here ({' '.join(str(error).split())}): pip install 'diinn[gpu]'") from None
        except Exception as error:  # pycuda.driver.Error cannot be named before the import
            raise InputError(f"no CUDA device: {error}") from None
        if ordinal >= count:
            raise InputError(f"there is no CUDA device {ordinal}: this machine has {count}")
        self._cuda = driver
        device = driver.Device(ordinal)
        self.name: str = device.name()
        self.capability: str = "{}.{}".format(*device.compute_capability())
        self._context = device.retain_primary_context()
        self._open: list[Any] = []
        with self.active():
            self._stream = driver.Stream()
        self.stream: int = self._stream.handle

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The device's context is this thread's within; errors of the driver leave as DiinnError."""
        self._context.push()
        try:
            yield
        except self._cuda.MemoryError as error:
            free, total = self._cuda.mem_get_info()
            raise DiinnError(
                f"out of device memory ({free / 2**20:.0f} of {total / 2**20:.0f} MiB are free): {error}: "
                "use a smaller --chunk, fewer cameras or smaller frames"
            ) from error
        except self._cuda.Error as error:
            raise DiinnError(f"CUDA failed: {error}") from error
        finally:
            self._context.pop()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        with self.active():
            return self._cuda.mem_get_info()  # type: ignore[no-any-return]

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes of device memory, freed by ``free`` or ``close``."""
        with self.active():
            block = self._cuda.mem_alloc(max(size, 1))
        self._open.append(block)
        return int(block)

    def free(self, address: int) -> None:
        for block in self._open:
            if int(block) == address:
                self._open.remove(block)
                with self.active():
                    block.free()
                return

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """A host array that copies reach without a detour."""
        with self.active():
            return self._cuda.pagelocked_empty(tuple(shape), np.dtype(dtype))  # type: ignore[no-any-return]

    def upload(self, address: int, values: Array) -> None:
        """Copy a contiguous host array to ``address``, in the stream's order."""
        with self.active():
            self._cuda.memcpy_htod_async(address, values, self._stream)

    def download(self, values: Array, address: int) -> None:
        """Copy to a contiguous host array, in the stream's order: wait before reading it."""
        with self.active():
            self._cuda.memcpy_dtoh_async(values, address, self._stream)

    def wait(self) -> None:
        """Until everything on the stream is done."""
        with self.active():
            self._stream.synchronize()

    def kernels(self, source: Path, names: Sequence[str]) -> dict[str, Callable[..., None]]:
        """Compile a .cu file for this device; each kernel is called as ``kernel(threads, *arguments)``."""
        try:
            from pycuda.compiler import SourceModule
        except ImportError as error:
            raise InputError(f"cannot compile CUDA kernels ({error}): install nvcc, the CUDA toolkit") from None
        with self.active():
            try:
                text = source.read_text(encoding="utf-8")
                module = SourceModule(text, no_extern_c=True, include_dirs=[str(source.parent)])
            except OSError as error:  # nvcc is not on the path
                raise InputError(f"cannot compile {source.name} ({error}): put the toolkit's nvcc on PATH") from None
            self._open.append(module)
            return {name: self._launcher(module.get_function(name)) for name in names}

    def _launcher(self, function: Any, block: int = 256) -> Callable[..., None]:
        def launch(threads: int, *arguments: Any) -> None:
            with self.active():
                grid = (-(-threads // block), 1)
                function(*arguments, block=(block, 1, 1), grid=grid, stream=self._stream)

        return launch

    @contextlib.contextmanager
    def capture(self, into: list[Graph]) -> Iterator[None]:
        """Work given to the stream within is recorded, not run; the graph is appended to ``into``.

        pycuda has no graphs: these calls go to the driver itself.
        """
        driver = ctypes.CDLL("libcuda.so.1")
        stream, graph, executable = ctypes.c_void_p(self.stream), ctypes.c_void_p(), ctypes.c_void_p()
        with self.active():
            _checked(driver.cuStreamBeginCapture_v2(stream, _CAPTURE_RELAXED), "cuStreamBeginCapture")
            try:
                yield
            finally:  # a capture that is not ended leaves the stream unusable
                ended = driver.cuStreamEndCapture(stream, ctypes.byref(graph))
            _checked(ended, "cuStreamEndCapture")
            try:
                made = driver.cuGraphInstantiateWithFlags(ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
                _checked(made, "cuGraphInstantiate")
            finally:
                driver.cuGraphDestroy(graph)
        into.append(Graph(driver, executable))

    def close(self) -> None:
        """Wait, free everything, let the context go."""
        with self.active():
            self._stream.synchronize()
            for block in self._open:
                if hasattr(block, "free"):
                    block.free()
            self._open.clear()
            del self._stream
        self._context.detach()


def _checked(code: int, call: str) -> None:
    if code:
        raise DiinnError(f"CUDA failed: {call} returned {code}")
