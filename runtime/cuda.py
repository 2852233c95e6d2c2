"""The one door to CUDA: device memory, pinned host memory, a stream, kernels. On pycuda.

Another binding would replace this file alone. Everything runs in the device's primary context, which TensorRT and ONNX
Runtime share, on one stream of its own. Errors of the driver become DiinnError.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import DiinnError, InputError

Array = npt.NDArray[Any]


class Device:
    """One CUDA device: its primary context, one non-default stream, and what was allocated on it."""

    def __init__(self, ordinal: int = 0) -> None:
        """Raises InputError where pycuda, the driver or the device is missing."""
        try:
            import pycuda.driver as driver

            driver.init()
            device = driver.Device(ordinal)
            self._context = device.retain_primary_context()
        except ImportError as error:
            raise InputError(f"no CUDA here ({' '.join(str(error).split())}): pip install pycuda") from None
        except Exception as error:  # pycuda.driver.Error cannot be named before the import
            raise InputError(f"no CUDA device {ordinal}: {error}") from None
        self._cuda = driver
        self.name: str = device.name()
        self.capability: str = "{}.{}".format(*device.compute_capability())
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
