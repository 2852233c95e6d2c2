"""A test double of ``diinn.runtime.gpu.device.Device`` in host memory: kernels are the real sources, compiled by g++.

Like the real stream it does nothing before somebody waits: what reads a result too early, or changes an input too
soon, gets it wrong. Captured work is recorded with its arguments, as a CUDA graph holds them; what breaks a capture is
refused, and so are launches beyond the limits, addresses that are not allocated and arguments that do not fit.
"""

import contextlib
import ctypes
import functools
import math
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from diinn.runtime.errors import DiinnError, OutOfMemory

EMULATOR = Path(__file__).with_name("emulator.h")
STREAMS = {}  # devices by stream
COMPILER = ("g++", "-std=c++17", "-O3", "-ffp-contract=off", "-fno-strict-aliasing")


def compile_kernels(source: Path, folder: Path, names):
    """The kernels of a .cu file as host functions; skips where there is no g++."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels for the host")
    shim, library = folder / f"{source.stem}.cpp", folder / f"{source.stem}-{'-'.join(names)}.so"
    if not library.exists():
        lines = [f'#include "{EMULATOR}"', f'#include "{source}"', *(f"LAUNCH({name})" for name in names)]
        shim.write_text("\n".join(lines))
        draft = library.with_suffix(".part")
        subprocess.run([*COMPILER, "-shared", "-fPIC", shim, "-o", draft], check=True)
        bounds = subprocess.run(
            [*COMPILER, "-E", "-DDIINN_SHOW_BOUNDS", shim], check=True, capture_output=True, text=True
        )
        found = re.findall(r"\blaunch_bounds\[([\d *]+)\]\s+(\w+)\s*\(", bounds.stdout)
        most = {name: math.prod(map(int, product.split("*"))) for product, name in found}
        library.with_suffix(".bounds").write_text("\n".join(f"{name} {threads}" for name, threads in most.items()))
        draft.rename(library)
    return ctypes.CDLL(str(library))


class Kernel:
    """One kernel of a host library. sizes: bytes of its arguments; most: threads of a block, by its launch bounds"""

    def __init__(self, library, name):
        self.name, self._launch = name, getattr(library, f"launch_{name}")
        self._launch.restype = ctypes.c_char_p
        sizes = getattr(library, f"arguments_{name}")
        sizes.restype = ctypes.POINTER(ctypes.c_int)
        self.sizes = [*iter(functools.partial(next, iter(sizes())), 0)]
        bounds = dict(line.split() for line in Path(library._name).with_suffix(".bounds").read_text().splitlines())
        self.most = int(bounds.get(name, 1024))

    def wrong(self, threads, arguments, block, shared, device_shared):
        """Why the driver would refuse a launch; empty if it would not."""
        given = [np.asarray(argument).dtype.itemsize for argument in arguments]
        if given != self.sizes:
            return f"{self.name}: arguments of {given} bytes, it takes {self.sizes}"
        if not 1 <= block <= self.most or threads < 1:
            return f"{self.name}: {threads} threads in blocks of {block}, its launch bounds say {self.most}"
        if shared > device_shared:
            return f"{self.name}: {shared} bytes of shared memory, the device has {device_shared}"
        return ""

    def __call__(self, threads, arguments, block, shared):
        """As the driver does it; ``arguments`` are NumPy scalars."""
        values = [np.array(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        wrong = self._launch(-(-threads // block), block, shared, pointers)
        if wrong:
            raise DiinnError(f"{self.name}: {wrong.decode()}")


class Mark:
    def __init__(self, device, run):
        self._device, self._run, self.at = device, run, 0.0

    def reached(self):
        self.at = time.perf_counter()

    def wait(self):
        self._device._unsafe("a wait")
        self._run()

    def since(self, earlier):
        self.wait()
        return (self.at - earlier.at) * 1e3


class HostDevice:
    """Poisoned host memory behind the interface of ``Device``.

    blocks: device memory by address; replayed: how often a graph was; captures: whether it takes any
    most_bytes: what may be allocated in all before it is out of memory; free_bytes: what it says it has
    skewed: which of the emulator's modes kernels run in; integrated: whether it shares the host's memory
    """

    name, capability = "Test double", "8.7"
    free_bytes = 4 * 2**30
    most_bytes = 2**40
    captures = True
    skewed = False
    multiprocessors, shared_bytes = 2, 163 * 1024
    integrated = False
    binding = "the double"
    folder: Path
    refused: list[str] = []  # noqa: RUF012  # since ``complaints`` was called, by all devices

    def __init__(self, ordinal=0):
        self.blocks, self._pinned, self._freed, self._queue, self.replayed, self.launches = {}, {}, [], [], 0, 0
        self._capturing = self._broken = self._closed = False
        self._copies = []  # on the other stream: to, from, bytes
        self._done = self._copied = 0  # pieces of work that were on the streams
        self.stream = len(STREAMS) + 1
        STREAMS[self.stream] = self

    @classmethod
    def complaints(cls):
        """What was refused since the last call."""
        refused, cls.refused[:] = [*cls.refused], []
        return refused

    def _refuse(self, why):
        self._broken = True
        self.refused.append(why)
        raise DiinnError(f"CUDA failed: {why}")

    def _unsafe(self, what):
        if self._closed:
            self._refuse(f"{what} of a closed device")
        if self._capturing:
            self._refuse(f"{what} while capturing")

    def _inside(self, address, size):
        if not any(at <= address and address + size <= at + block.nbytes - 256 for at, block in self.blocks.items()):
            self._refuse(f"{size} bytes at {address:#x}, which are not allocated")

    @contextlib.contextmanager
    def active(self):
        yield

    def memory(self):
        return self.free_bytes, self.free_bytes

    def allocate(self, size):
        self._unsafe("an allocation")
        if size + sum(block.nbytes for block in self.blocks.values()) > self.most_bytes:
            raise OutOfMemory("out of device memory")
        block = np.full(max(size, 1) + 256, 0xFF, np.uint8)  # NaN, in fp32 and in fp16
        address = -(-block.ctypes.data // 256) * 256  # as a device gives it
        self.blocks[address] = block
        return address

    def free(self, address):
        self._unsafe("a free")
        if address not in self.blocks:
            self._refuse(f"{address:#x} freed, which is not allocated")
        self.wait()  # as the driver does
        del self.blocks[address]

    def pinned(self, shape, dtype):
        self._unsafe("an allocation of pinned memory")
        values = np.empty(shape, dtype)
        self._pinned[values.ctypes.data] = values
        return values

    def mapped(self, values):
        return self._pinned[values.ctypes.data].ctypes.data

    def unpin(self, values):
        self._unsafe("a free of pinned memory")
        self.wait()
        values[...] = 0xFF  # whoever still reads it sees it
        self._freed.append(self._pinned.pop(values.ctypes.data))

    def _is_pinned(self, values):
        found = any(np.shares_memory(values, pinned) for pinned in self._pinned.values())
        if not found and self._capturing:
            self._refuse("a copy of pageable memory while capturing")
        return found

    def upload(self, address, values):
        assert values.flags.c_contiguous
        self._inside(address, values.nbytes)
        if not self._is_pinned(values):
            values = values.copy()  # the driver has taken pageable memory up when it returns
        self.put(ctypes.memmove, address, values.ctypes.data, values.nbytes, keep=values)

    def fill(self, address, size, byte):
        self._inside(address, size)
        self.put(ctypes.memset, address, byte, size)

    def milliseconds(self, works, repeats):
        times = []
        for i in range(repeats):
            self.wait()
            began = time.perf_counter()
            works[i % len(works)]()
            self.wait()
            times.append((time.perf_counter() - began) * 1e3)
        return times

    def fetch(self, values, address):
        """Done as late as it may be: when all is that is on the stream by then; pageable memory before this returns."""
        self._unsafe("a copy beside the stream")
        self._inside(address, values.nbytes)
        self._copies.append((values.ctypes.data, address, values.nbytes))
        last = self._copied + len(self._copies)
        if not self._is_pinned(values):
            self._copy(last)
        return Mark(self, lambda: self._copy(last))

    def _copy(self, last):
        self._run(self._done + len(self._queue))
        while self._copied < last:
            ctypes.memmove(*self._copies.pop(0))
            self._copied += 1

    def put(self, work, *arguments, keep=None):
        """Add to the stream."""
        if self._closed:
            self._refuse("work for a closed device")
        self._queue.append((work, arguments, keep))

    def mark(self):
        self._unsafe("an event")
        mark = Mark(self, lambda: self._run(last))
        self.put(mark.reached)
        last = self._done + len(self._queue)
        return mark

    def wait(self):
        self._unsafe("a wait")
        self._copy(self._copied + len(self._copies))

    def _run(self, last):
        """What was put on the stream before it held ``last`` pieces of work in all."""
        while self._done < last:
            work, arguments, _ = self._queue.pop(0)
            self._done += 1
            work(*arguments)

    def capture(self, work):
        self._unsafe("a capture")
        if not self.captures:
            raise DiinnError("the double captures nothing")
        before, self._queue = self._queue, []
        self._capturing, self._broken = True, False
        try:
            work()
            recorded = self._queue
        finally:
            self._queue, self._capturing = before, False
        if self._broken:
            raise DiinnError("CUDA failed: the capture was broken")

        def replay():
            self._unsafe("a graph launched")
            self.replayed += 1
            self._queue.extend(recorded)

        return replay

    def kernels(self, source, names):
        self._unsafe("a module loaded")
        library = compile_kernels(source, self.folder, names)
        library.emulator_skew(self.skewed)

        def launcher(kernel):
            def put(threads, *arguments, block=256, shared=0):
                wrong = kernel.wrong(threads, arguments, block, shared, self.shared_bytes)
                if wrong:
                    self._refuse(wrong)
                self.launches += 1
                self.put(kernel, threads, arguments, block, shared)

            return put

        return {name: launcher(Kernel(library, name)) for name in names}

    def close(self):
        if self._closed:
            return
        self.wait()
        self.blocks.clear()
        self._pinned.clear()
        self._closed = True
