"""The one door to CUDA: device memory, pinned host memory, a stream, kernels, graphs. On pycuda.

Another binding would replace this file alone. Everything runs in the device's primary context, which TensorRT and ONNX
Runtime share, on one stream of its own. Errors of the driver become DiinnError.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import DiinnError, InputError

Array = npt.NDArray[Any]
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the stream does not wait for the default one
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on meanwhile
_contexts: dict[int, Any] = {}  # primary contexts, retained as long as the process lives


class OutOfMemory(DiinnError):
    """The device has not so much memory left."""


class Device:
    """One CUDA device: its primary context, one non-default stream, and what was allocated on it."""

    def __init__(self, ordinal: int = 0) -> None:
        """Raises InputError where pycuda, the driver or the device is missing."""
        try:
            import pycuda.driver as driver

            driver.init()
            device = driver.Device(ordinal)
            if ordinal not in _contexts:
                _contexts[ordinal] = device.retain_primary_context()
        except ImportError as error:
            raise InputError(f"no CUDA here ({' '.join(str(error).split())}): pip install pycuda") from None
        except Exception as error:  # pycuda.driver.Error cannot be named before the import
            raise InputError(f"no CUDA device {ordinal}: {error}") from None
        self._cuda, self._context = driver, _contexts[ordinal]
        self.name: str = device.name()
        self.capability: str = "{}.{}".format(*device.compute_capability())
        self._blocks: dict[int, Any] = {}  # device memory by address
        self._kept: list[Any] = []  # pinned memory and modules
        with self.active():
            self._stream = driver.Stream(NON_BLOCKING)
        self.stream: int = self._stream.handle

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The device's context is this thread's within; errors of the driver leave as DiinnError."""
        self._context.push()
        try:
            yield
        except self._cuda.MemoryError as error:
            free, total = self._cuda.mem_get_info()
            raise OutOfMemory(
                f"out of device memory ({free / 2**20:.0f} of {total / 2**20:.0f} MiB are free): "
                "use fewer cameras or smaller frames"
            ) from error
        except self._cuda.Error as error:
            raise DiinnError(f"CUDA failed: {' '.join(str(error).split())[:300]}") from error
        finally:
            self._context.pop()

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        with self.active():
            return self._cuda.mem_get_info()  # type: ignore[no-any-return]

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes of device memory, freed by ``free`` or ``close``. Raises OutOfMemory."""
        with self.active():
            block = self._cuda.mem_alloc(max(size, 1))
        self._blocks[int(block)] = block
        return int(block)

    def free(self, address: int) -> None:
        with self.active():
            self._blocks.pop(address).free()

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """A host array that copies reach without a detour; it is gone when the device is closed."""
        with self.active():
            values: Array = self._cuda.pagelocked_empty(tuple(shape), np.dtype(dtype))
        self._kept.append(values.base)
        return values

    def unpin(self, values: Array) -> None:
        """Free what ``pinned`` gave."""
        with self.active():
            memory: Any = values.base
            self._kept.remove(memory)
            memory.free()

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
            self._kept.append(module)
            return {name: self._launcher(module.get_function(name)) for name in names}

    def _launcher(self, function: Any, block: int = 256) -> Callable[..., None]:
        def launch(threads: int, *arguments: Any) -> None:
            with self.active():
                grid = (-(-threads // block), 1)
                function(*arguments, block=(block, 1, 1), grid=grid, stream=self._stream)

        return launch

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What ``work`` puts on the stream, as a CUDA graph: call the result to have it done again, as one.

        ``work`` itself does nothing now. Raises DiinnError where the driver or a library refuses.
        """
        library = _driver_library()
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        stream = ctypes.c_void_p(self.stream)
        with self.active():
            _checked(library.cuStreamBeginCapture_v2(stream, THREAD_LOCAL), "cuStreamBeginCapture")
            try:
                work()
            finally:
                ended = library.cuStreamEndCapture(stream, ctypes.byref(graph))
            _checked(ended, "cuStreamEndCapture")
            try:
                flags = ctypes.c_ulonglong(0)
                _checked(library.cuGraphInstantiateWithFlags(ctypes.byref(ready), graph, flags), "cuGraphInstantiate")
            finally:
                library.cuGraphDestroy(graph)

        def replay() -> None:
            with self.active():
                _checked(library.cuGraphLaunch(ready, stream), "cuGraphLaunch")

        weakref.finalize(replay, library.cuGraphExecDestroy, ready)
        return replay

    def close(self) -> None:
        """Wait and free everything."""
        with self.active():
            self._stream.synchronize()
            for block in [*self._blocks.values(), *self._kept]:
                if hasattr(block, "free"):
                    block.free()
            self._blocks.clear()
            self._kept.clear()
            del self._stream


def _driver_library() -> Any:
    try:
        return ctypes.CDLL("libcuda.so.1")  # pycuda has no CUDA graphs
    except OSError as error:
        raise DiinnError(f"no CUDA graphs here: {error}") from None


def _checked(result: int, what: str) -> None:
    if result:
        raise DiinnError(f"{what} failed with CUDA error {result}")
