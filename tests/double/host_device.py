"""A test double of ``diinn.runtime.cuda.Device`` in host memory: kernels are the real sources, compiled by g++.

Like the real stream it does nothing before somebody waits: what reads a result too early, or changes an input too
soon, gets it wrong. Captured work is recorded with its arguments, as a CUDA graph holds them.
"""

import contextlib
import ctypes
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

EMULATOR = Path(__file__).with_name("emulator.h")
STREAMS = {}  # devices by stream


def compile_kernels(source: Path, folder: Path, names):
    """The kernels of a .cu file as host functions; skips where there is no g++."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels for the host")
    shim, library = folder / f"{source.stem}.cpp", folder / f"{source.stem}-{'-'.join(names)}.so"
    if not library.exists():
        lines = [f'#include "{EMULATOR}"', f'#include "{source}"', *(f"LAUNCH({name})" for name in names)]
        shim.write_text("\n".join(lines))
        flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"]
        draft = library.with_suffix(".part")
        subprocess.run(["g++", *flags, shim, "-o", draft], check=True)
        draft.rename(library)
    return ctypes.CDLL(str(library))


def launch(function, threads, arguments, block, shared):
    """As the driver does it; ``arguments`` are NumPy scalars."""
    values = [np.array(argument) for argument in arguments]
    pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
    function(-(-threads // block), block, shared, pointers)


class HostDevice:
    """Poisoned host memory behind the interface of ``Device``; ``free_bytes`` is what it says it has.

    blocks: device memory by address; replayed: how often a graph was; captures: whether it takes any
    most_bytes: what may be allocated in all before it is out of memory
    """

    name, capability = "Test double", "8.7"
    free_bytes = 4 * 2**30
    most_bytes = 2**40
    captures = True
    multiprocessors, shared_bytes = 2, 163 * 1024
    folder: Path

    def __init__(self, ordinal=0):
        self.blocks, self._pinned, self._freed, self._queue, self.replayed, self.launches = {}, {}, [], [], 0, 0
        self.stream = len(STREAMS) + 1
        STREAMS[self.stream] = self

    @contextlib.contextmanager
    def active(self):
        yield

    def memory(self):
        return self.free_bytes, self.free_bytes

    def allocate(self, size):
        from diinn.runtime.cuda import OutOfMemory

        if size + sum(block.nbytes for block in self.blocks.values()) > self.most_bytes:
            raise OutOfMemory("out of device memory")
        block = np.full(max(size, 1) + 256, 0xFF, np.uint8)  # NaN, in fp32 and in fp16
        address = -(-block.ctypes.data // 256) * 256  # as a device gives it
        self.blocks[address] = block
        return address

    def free(self, address):
        self.wait()  # as the driver does
        del self.blocks[address]

    def pinned(self, shape, dtype):
        values = np.empty(shape, dtype)
        self._pinned[values.ctypes.data] = values
        return values

    def unpin(self, values):
        values[...] = 0xFF  # whoever still reads it sees it
        self._freed.append(self._pinned.pop(values.ctypes.data))

    def upload(self, address, values):
        assert values.flags.c_contiguous
        if not any(np.shares_memory(values, pinned) for pinned in self._pinned.values()):
            values = values.copy()  # the driver has taken pageable memory up when it returns
        self.put(ctypes.memmove, address, values.ctypes.data, values.nbytes, keep=values)

    def download(self, values, address):
        assert values.flags.c_contiguous
        self.put(ctypes.memmove, values.ctypes.data, address, values.nbytes, keep=values)

    def fill(self, address, size, byte):
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

    def put(self, work, *arguments, keep=None):
        """Add to the stream."""
        self._queue.append((work, arguments, keep))

    def wait(self):
        queue, self._queue = self._queue, []
        for work, arguments, _ in queue:
            work(*arguments)

    def capture(self, work):
        from diinn.runtime.errors import DiinnError

        if not self.captures:
            raise DiinnError("the double captures nothing")
        before, self._queue = self._queue, []
        try:
            work()
            recorded = self._queue
        finally:
            self._queue = before

        def replay():
            self.replayed += 1
            self._queue.extend(recorded)

        return replay

    def kernels(self, source, names):
        library = compile_kernels(source, self.folder, names)

        def launcher(name):
            function = getattr(library, f"launch_{name}")

            def put(threads, *arguments, block=256, shared=0):
                self.launches += 1
                self.put(launch, function, threads, arguments, block, shared)

            return put

        return {name: launcher(name) for name in names}

    def close(self):
        self.wait()
        self.blocks.clear()
        self._pinned.clear()
