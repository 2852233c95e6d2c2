"""What ``device.py`` uses of ``pycuda.driver``, by the same names, on NVIDIA's own ``cuda.bindings``.

That is a wheel which is ready to run, where pycuda has to be compiled. Handles and addresses are integers, as pycuda
has them. What more ``device.py`` takes of pycuda must be added here; the tests of the device run on both.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Sequence
from typing import Any

import cuda.bindings
import numpy as np
import numpy.typing as npt
from cuda.bindings import driver

PARAMETERS, SIZE, END = 1, 2, 0  # CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END
VERSION: str = f"cuda.bindings {cuda.bindings.__version__}"


class Error(Exception):
    """The driver refused a call: its name and the driver's words."""


class MemoryError(Error):
    """There is not enough memory on the device, or of pinned memory."""


def _call(name: str, *arguments: Any) -> Any:
    """What a function of the driver returns beside its result: None, a value or a tuple. Raises Error."""
    try:
        result, *values = getattr(driver, name)(*arguments)
    except RuntimeError as error:  # a function that this driver does not have
        raise Error(f"{name} failed: {error}") from None
    if result:
        text = driver.cuGetErrorString(result)[1] or b"unknown error"
        kind = MemoryError if result == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY else Error
        raise kind(f"{name} failed: {text.decode()}")
    return values[0] if len(values) == 1 else tuple(values) or None


class _Names:
    """Members of an enumeration, or constants, by the names that pycuda gives them, without what they begin with."""

    def __init__(self, kind: Any, begin: str) -> None:
        self._kind, self._begin = kind, begin

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kind, self._begin + name)


device_attribute = _Names(driver.CUdevice_attribute, "CU_DEVICE_ATTRIBUTE_")
function_attribute = _Names(driver.CUfunction_attribute, "CU_FUNC_ATTRIBUTE_")
host_alloc_flags = _Names(driver, "CU_MEMHOSTALLOC_")


def init() -> None:
    """Start the driver. Raises Error, also where it is older than this binding takes."""
    _call("cuInit", 0)
    wanted = int(cuda.bindings.__version__.split(".")[0])
    found = get_driver_version()
    if found < wanted * 1000:
        raise Error(
            f"{VERSION} wants a driver of CUDA {wanted}, this one is of {found // 1000}.{found % 1000 // 10}: "
            f"pip install {_wheels(found // 1000)}"
        )


def _wheels(major: int) -> str:
    """The wheels for a driver of CUDA ``major``, as a shell takes them; from 13 on NVRTC's is called without it."""
    compiler = f"nvidia-cuda-nvrtc-cu{major}" if major < 13 else f"'nvidia-cuda-nvrtc<{major + 1}'"
    return f"'cuda-bindings<{major + 1}' {compiler}"


def get_driver_version() -> int:
    """The newest CUDA version the driver runs: 12060 is 12.6."""
    return int(_call("cuDriverGetVersion"))


class Device:
    """A CUDA device by its number."""

    def __init__(self, ordinal: int) -> None:
        self._device = _call("cuDeviceGet", ordinal)

    def name(self) -> str:
        """As the driver gives it."""
        text: bytes = _call("cuDeviceGetName", 256, self._device)
        return text.split(b"\0")[0].decode()

    def compute_capability(self) -> tuple[int, int]:
        """Major and minor."""
        kinds = device_attribute
        major, minor = kinds.COMPUTE_CAPABILITY_MAJOR, kinds.COMPUTE_CAPABILITY_MINOR
        return self.get_attribute(major), self.get_attribute(minor)

    def get_attribute(self, kind: Any) -> int:
        """One of ``device_attribute``."""
        return int(_call("cuDeviceGetAttribute", kind, self._device))

    def retain_primary_context(self) -> Context:
        """The context that TensorRT and ONNX Runtime use, too."""
        return Context(self._device, _call("cuDevicePrimaryCtxRetain", self._device))


class Context:
    """A primary context that is retained until ``detach``."""

    def __init__(self, device: Any, handle: Any) -> None:
        self._device, self._handle = device, handle

    def push(self) -> None:
        """Make it this thread's."""
        _call("cuCtxPushCurrent", self._handle)

    def pop(self) -> None:
        """Back to the one before."""
        _call("cuCtxPopCurrent")

    def detach(self) -> None:
        """Let it go."""
        _call("cuDevicePrimaryCtxRelease", self._device)


class _Owned:
    """Something of the driver's that ``free`` destroys, or that goes when nobody holds it any more."""

    def __init__(self, destroy: str, handle: Any) -> None:
        self._handle, self._destroy = handle, destroy
        self._end = weakref.finalize(self, _let_go, destroy, handle, _call("cuCtxGetCurrent"))
        self._end.atexit = False  # its context may be gone by then, and it with it

    def free(self) -> None:
        """Destroy it; twice does nothing more."""
        if self._end.detach():
            _call(self._destroy, self._handle)


def _let_go(destroy: str, handle: Any, context: Any) -> None:
    """Destroy what nobody holds, on any thread; what fails then, fails on a device that is lost."""
    if driver.cuCtxPushCurrent(context)[0] == 0:
        getattr(driver, destroy)(handle)
        driver.cuCtxPopCurrent()


class Stream(_Owned):
    """A stream, which with ``flags`` 1 does not wait for the default one; ``handle`` is the driver's."""

    def __init__(self, flags: int = 0) -> None:
        super().__init__("cuStreamDestroy", _call("cuStreamCreate", flags))
        self.handle = int(self._handle)

    def synchronize(self) -> None:
        """Until everything on it is done."""
        _call("cuStreamSynchronize", self._handle)

    def wait_for_event(self, event: Event) -> None:
        """What is put on it from here on waits for an event of another stream."""
        _call("cuStreamWaitEvent", self._handle, event._handle, 0)


class Event(_Owned):
    """A point in a stream's work, with its time."""

    def __init__(self) -> None:
        super().__init__("cuEventDestroy", _call("cuEventCreate", 0))

    def record(self, stream: Stream) -> None:
        """Put it on a stream."""
        _call("cuEventRecord", self._handle, stream.handle)

    def synchronize(self) -> None:
        """Until it was reached."""
        _call("cuEventSynchronize", self._handle)

    def time_till(self, end: Event) -> float:
        """Milliseconds from here to ``end``; both were reached."""
        return float(_call("cuEventElapsedTime", self._handle, end._handle))


class DeviceAllocation(_Owned):
    """Device memory: its address is ``int(allocation)``."""

    def __init__(self, size: int) -> None:
        super().__init__("cuMemFree", _call("cuMemAlloc", size))

    def __int__(self) -> int:
        return int(self._handle)


mem_alloc = DeviceAllocation


class PagelockedHostAllocation(_Owned):
    """Pinned host memory, which NumPy takes as an array of ``shape``."""

    def __init__(self, shape: Sequence[int], kind: np.dtype[Any], flags: int) -> None:
        size = max(int(np.prod(shape)) * kind.itemsize, 1)
        super().__init__("cuMemFreeHost", int(_call("cuMemHostAlloc", size, flags)))
        self.__array_interface__ = {
            "data": (self._handle, False), "shape": tuple(shape), "typestr": kind.str, "version": 3
        }  # fmt: skip

    def get_device_pointer(self) -> int:
        """Where kernels find it; with DEVICEMAP of ``host_alloc_flags``."""
        return int(_call("cuMemHostGetDevicePointer", self._handle, 0))


def pagelocked_empty(shape: Sequence[int], dtype: npt.DTypeLike, mem_flags: int = 0) -> npt.NDArray[Any]:
    """An array in pinned memory; its ``base`` frees it."""
    return np.asarray(PagelockedHostAllocation(shape, np.dtype(dtype), mem_flags))


def mem_get_info() -> tuple[int, int]:
    """(free, total) bytes of the device."""
    free, total = _call("cuMemGetInfo")
    return int(free), int(total)


def memcpy_htod_async(to: int, values: npt.NDArray[Any], stream: Stream) -> None:
    """Copy a contiguous array to the device."""
    _call("cuMemcpyHtoDAsync", to, _address(values), values.nbytes, stream.handle)


def memcpy_dtoh_async(values: npt.NDArray[Any], at: int, stream: Stream) -> None:
    """Copy from the device to a contiguous array."""
    _call("cuMemcpyDtoHAsync", _address(values), at, values.nbytes, stream.handle)


def memset_d8_async(at: int, byte: int, size: int, stream: Stream) -> None:
    """Set bytes of the device."""
    _call("cuMemsetD8Async", at, byte, size, stream.handle)


def _address(values: npt.NDArray[Any]) -> int:
    if not values.flags.c_contiguous:
        raise ValueError("the array is not contiguous")
    return values.ctypes.data


class Module(_Owned):
    """A cubin or fat binary on the device."""

    def __init__(self, code: bytes) -> None:
        super().__init__("cuModuleUnload", _call("cuModuleLoadData", code))

    def get_function(self, name: str) -> Function:
        """A kernel by its name; it holds its module."""
        return Function(self, _call("cuModuleGetFunction", self._handle, name.encode()))


module_from_buffer = Module


class Function:
    """A kernel."""

    def __init__(self, module: Module, handle: Any) -> None:
        self._module, self._handle = module, handle

    def set_attribute(self, kind: Any, value: int) -> None:
        """Set one of ``function_attribute``."""
        _call("cuFuncSetAttribute", self._handle, kind, value)

    def __call__(
        self, *arguments: Any, block: tuple[int, ...], grid: tuple[int, int], shared: int, stream: Stream
    ) -> None:
        """Launch it. arguments: NumPy scalars, which the driver is given as one buffer of known size."""
        packed = struct.pack("".join(np.asarray(argument).dtype.char for argument in arguments), *arguments)
        buffer = np.frombuffer(packed, np.uint8)
        size = np.array(buffer.nbytes, np.uint64)
        extra = np.array([PARAMETERS, buffer.ctypes.data, SIZE, size.ctypes.data, END], np.uint64)
        _call("cuLaunchKernel", self._handle, *grid, 1, *block, shared, stream.handle, 0, extra.ctypes.data)
