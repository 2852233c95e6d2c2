"""All of CUDA that the runtime uses: device memory, pinned host memory, a stream, kernels, graphs.

On pycuda, or where it is not installed on NVIDIA's cuda.bindings by the same names (``cuda_bindings.py``). Everything
runs in the device's primary context, which TensorRT and ONNX Runtime share, on one stream of its own; a second one
copies to the host meanwhile. Errors of the driver become DiinnError.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import logging
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import DiinnError, InputError, OutOfMemory
from diinn.runtime.gpu import compiler
from diinn.runtime.util import cuda_driver

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: the stream does not wait for the default one
THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on meanwhile
BINDINGS = ("pycuda.driver", "diinn.runtime.gpu.cuda_bindings")  # of the driver: the first that is there is taken
_lost: list[Any] = []  # what devices that were lost had, and events that were in use when theirs was closed
_contexts: dict[tuple[str, int], Any] = {}  # primary contexts by binding and device, retained until the process ends


class Mark:
    """A point in the work on a stream, by ``Device.mark`` or ``Device.fetch``."""

    def __init__(self, device: Device, event: Any) -> None:
        self._device, self._event = device, event
        weakref.finalize(self, _spare, device, event).atexit = False

    def wait(self) -> None:
        """Until all that was on the stream before it is done, whatever was put there later."""
        with self._device.active():
            self._event.synchronize()

    def since(self, earlier: Mark) -> float:
        """Milliseconds from ``earlier`` to here, by the device's clock. Waits for it."""
        self.wait()
        with self._device.active():
            return float(earlier._event.time_till(self._event))


def _spare(device: Device, event: Any) -> None:
    """Keep an event for another mark: pycuda destroys none on a thread that has not the context."""
    (_lost if device._closed else device._events).append(event)


class Device:
    """One CUDA device: its primary context, one non-default stream, and what was allocated on it.

    name; capability: compute capability, like "8.7"; multiprocessors: how many; shared_bytes: of shared memory that a
    block may have; integrated: whether it shares the host's memory, as a Jetson's; stream: its handle; binding: of the
    driver, with its version
    """

    def __init__(self, ordinal: int = 0) -> None:
        """Raises InputError where the driver, a binding of it or the device is missing."""
        driver = _binding()
        key = driver.__name__, ordinal
        try:
            driver.init()
            device = driver.Device(ordinal)
            if key not in _contexts:
                _contexts[key] = device.retain_primary_context()
                atexit.register(_contexts[key].detach)  # pycuda's destructor takes it for one that it created
        except driver.Error as error:
            raise InputError(f"no CUDA device {ordinal}: {error}") from None
        self._cuda, self._context = driver, _contexts[key]
        self.binding: str = getattr(driver, "VERSION", "") or f"pycuda {importlib.import_module('pycuda').VERSION_TEXT}"
        self.name: str = device.name()
        self.capability: str = "{}.{}".format(*device.compute_capability())
        kinds = driver.device_attribute
        self.multiprocessors: int = device.get_attribute(kinds.MULTIPROCESSOR_COUNT)
        self.shared_bytes: int = device.get_attribute(kinds.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
        self.integrated: bool = bool(device.get_attribute(kinds.INTEGRATED))
        self._blocks: dict[int, Any] = {}  # device memory by address
        self._kept: list[Any] = []  # pinned memory and modules
        self._events: list[Any] = []  # that no mark has
        self._closed = False
        with self.active():
            self._stream, self._copies = driver.Stream(NON_BLOCKING), driver.Stream(NON_BLOCKING)
        self.stream: int = self._stream.handle

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """The device's context is this thread's within; errors of the driver leave as DiinnError."""
        if self._closed:
            raise DiinnError(f"the device {self.name} is closed: open another")
        try:
            self._context.push()
            try:
                yield
            except self._cuda.MemoryError as error:
                free, total = self._cuda.mem_get_info()
                raise OutOfMemory(
                    f"out of device memory ({free / 2**20:.0f} of {total / 2**20:.0f} MiB are free): "
                    "use fewer cameras or smaller frames"
                ) from error
            finally:
                self._context.pop()
        except self._cuda.Error as error:
            raise DiinnError(f"CUDA failed: {' '.join(str(error).split())[:300]}") from error

    def memory(self) -> tuple[int, int]:
        """(free, total) bytes."""
        with self.active():
            return self._cuda.mem_get_info()  # type: ignore[no-any-return]

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes of device memory, freed by ``free`` or ``close``. Raises OutOfMemory."""
        try:
            with self.active():
                block = self._cuda.mem_alloc(max(size, 1))
        except OutOfMemory as error:
            raise OutOfMemory(f"{size / 2**20:.1f} MiB wanted, {error}") from None
        self._blocks[int(block)] = block
        return int(block)

    def free(self, address: int) -> None:
        """Free what ``allocate`` gave; DiinnError for any other address."""
        if address not in self._blocks:
            raise DiinnError(f"{address:#x} is no memory of {self.name}: it was freed before, or never allocated")
        with self.active():
            self._blocks[address].free()
            del self._blocks[address]

    def pinned(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """A page-locked host array, which copies need no staging for, and kernels see (``mapped``).

        It is freed when the device is closed.
        """
        kind = np.dtype(dtype)
        try:
            with self.active():
                flags = self._cuda.host_alloc_flags.DEVICEMAP
                values: Array = self._cuda.pagelocked_empty(tuple(shape), kind, mem_flags=flags)
        except OutOfMemory as error:
            size = int(np.prod(shape)) * kind.itemsize
            raise OutOfMemory(f"{size / 2**20:.1f} MiB of pinned memory wanted, {error}") from None
        self._kept.append(values.base)
        return values

    def mapped(self, values: Array) -> int:
        """Where kernels find what ``pinned`` gave."""
        with self.active():
            memory: Any = values.base
            return int(memory.get_device_pointer())

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

    def fetch(self, values: Array, address: int) -> Mark:
        """Copy to a contiguous host array once all that is on the stream now is done, beside what is put there later.

        Nothing may write to ``address`` before the copy is waited for. It cannot be captured.
        """
        before = self.mark()
        with self.active():
            self._copies.wait_for_event(before._event)
            self._cuda.memcpy_dtoh_async(values, address, self._copies)
            return self._marked(self._copies)

    def fill(self, address: int, size: int, byte: int) -> None:
        """Set ``size`` bytes at ``address`` to ``byte``, in the stream's order."""
        with self.active():
            self._cuda.memset_d8_async(address, byte, size, self._stream)

    def milliseconds(self, works: Sequence[Callable[[], None]], repeats: int) -> list[float]:
        """How long the device takes for each of ``repeats`` runs, in which ``works`` take turns."""
        pairs = []
        for i in range(repeats):
            begin = self.mark()
            works[i % len(works)]()
            pairs.append((begin, self.mark()))
        return [end.since(begin) for begin, end in pairs]

    def mark(self) -> Mark:
        """A mark behind all that is on the stream now."""
        with self.active():
            return self._marked(self._stream)

    def _marked(self, stream: Any) -> Mark:
        try:
            event = self._events.pop()
        except IndexError:
            event = self._cuda.Event()
        event.record(stream)
        return Mark(self, event)

    def wait(self) -> None:
        """Until everything is done: on the stream, and what ``fetch`` copies."""
        with self.active():
            self._stream.synchronize()
            self._copies.synchronize()

    def kernels(self, source: Path, names: Sequence[str]) -> dict[str, Callable[..., None]]:
        """Kernels of a .cu file, compiled for this device (``compiler.machine_code``).

        Each is called as ``kernel(threads, *arguments, block=256, shared=0)``: arguments are NumPy scalars, addresses
        uint64; ``threads`` is rounded up to whole blocks; shared: bytes of dynamic shared memory.
        """
        code = compiler.machine_code(source, self.capability, self._cuda.get_driver_version())
        with self.active():
            module = self._cuda.module_from_buffer(code)
            self._kept.append(module)
            return {name: self._launcher(module.get_function(name)) for name in names}

    def _launcher(self, function: Any) -> Callable[..., None]:
        most = 48 * 1024  # what a kernel may have by default

        def launch(threads: int, *arguments: Any, block: int = 256, shared: int = 0) -> None:
            nonlocal most
            with self.active():
                if shared > most:
                    function.set_attribute(self._cuda.function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)
                    most = shared
                grid = (-(-threads // block), 1)
                function(*arguments, block=(block, 1, 1), grid=grid, shared=shared, stream=self._stream)

        return launch

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What ``work`` puts on the stream, as a CUDA graph: calling the result launches it.

        ``work`` is recorded now, not run. Raises DiinnError where the driver or a library refuses.
        """
        library = _driver_library()
        graph, ready = ctypes.c_void_p(), ctypes.c_void_p()
        stream = ctypes.c_void_p(self.stream)
        with self.active():
            _checked(library.cuStreamBeginCapture_v2(stream, THREAD_LOCAL), "cuStreamBeginCapture")
            try:
                try:
                    work()
                finally:
                    ended = library.cuStreamEndCapture(stream, ctypes.byref(graph))
                _checked(ended, "cuStreamEndCapture")
                flags = ctypes.c_ulonglong(0)
                _checked(library.cuGraphInstantiateWithFlags(ctypes.byref(ready), graph, flags), "cuGraphInstantiate")
            finally:
                if graph:
                    library.cuGraphDestroy(graph)

        def replay() -> None:
            with self.active():
                _checked(library.cuGraphLaunch(ready, stream), "cuGraphLaunch")

        # At exit the context may be detached already, and the graph is gone with it.
        weakref.finalize(replay, library.cuGraphExecDestroy, ready).atexit = False
        return replay

    def close(self) -> None:
        """Wait and free everything; a lost device has nothing left to free. Closing twice does nothing more."""
        if self._closed:
            return
        try:
            with self.active():
                self._stream.synchronize()
                self._copies.synchronize()
                for block in [*self._blocks.values(), *self._kept]:
                    if hasattr(block, "free"):
                        block.free()
        except DiinnError as error:
            log.warning("closing %s: %s", self.name, error)
            kept = (self._blocks, self._kept, self._events, self._stream, self._copies)
            _lost.append(kept)  # to free them would only fail again
            self._closed = True
            return
        with contextlib.suppress(DiinnError), self.active():  # freed when they are released
            self._closed = True  # no more events come
            self._blocks.clear()
            self._kept.clear()
            self._events.clear()
            del self._stream, self._copies
        self._closed = True  # and where the context is not to be had


def _binding() -> Any:
    """The first of ``BINDINGS`` that is installed. Raises InputError where the driver or all of them are missing."""
    missing = cuda_driver.missing()
    if missing:
        raise InputError(missing)
    reasons = []
    for name in BINDINGS:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(str(error))
    raise InputError(cuda_driver.no_binding(reasons))


def _driver_library() -> Any:
    try:
        return ctypes.CDLL(cuda_driver.LIBRARY)  # pycuda has no CUDA graphs
    except OSError as error:
        raise DiinnError(f"no CUDA graphs here: {error}") from None


def _checked(result: int, what: str) -> None:
    if result:
        raise DiinnError(f"{what} failed with CUDA error {result}")
