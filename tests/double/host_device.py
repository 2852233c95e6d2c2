"""A test double of ``diinn.runtime.cuda.Device`` in host memory: kernels are the real sources, compiled by g++."""

import contextlib
import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

SHIM = """
#include <math.h>
#include <stdint.h>
#define __global__
#define __device__
static struct { int x; } blockIdx, threadIdx, blockDim = {1};
#include "SOURCE"
template <typename... Wanted, typename... Given>
static void run(void (*kernel)(Wanted...), long long threads, Given... given) {
    for (blockIdx.x = 0; blockIdx.x < threads; ++blockIdx.x) kernel(given...);
}
extern "C" void launch_regular_queries(
    long long threads, long long first, int count, int height, int width, int source_width, int offset, int shifts,
    int columns, int weighted, const int *rows, const float *row_at, const int *cols, const float *col_at,
    const float *constants, int *index, float *query) {
    run(regular_queries, threads, first, count, height, width, source_width, offset, shifts, columns, weighted, rows,
        row_at, cols, col_at, constants, index, query);
}
extern "C" void launch_gather_rows_4(long long n, long long v, int c, const uint32_t *m, const int *i, uint32_t *r) {
    run(gather_rows_4, n, v, c, m, i, r);
}
extern "C" void launch_gather_rows_2(long long n, long long v, int c, const uint16_t *m, const int *i, uint16_t *r) {
    run(gather_rows_2, n, v, c, m, i, r);
}
"""
TYPES = {"int64": ctypes.c_longlong, "int32": ctypes.c_int, "uint64": ctypes.c_void_p}


def compile_kernels(source: Path, folder: Path):
    """The kernels of a .cu file as host functions; skips where there is no g++."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the kernels for the host")
    shim, library = folder / "shim.cpp", folder / "kernels.so"
    if not library.exists():
        shim.write_text(SHIM.replace("SOURCE", str(source)))
        subprocess.run(["g++", "-O2", "-shared", "-fPIC", "-ffp-contract=off", shim, "-o", library], check=True)
    return ctypes.CDLL(str(library))


class HostDevice:
    """Poisoned host memory behind the interface of ``Device``; ``free_bytes`` is what it says it has."""

    name, capability, stream = "Test double", "0.0", 1
    free_bytes = 4 * 2**30
    folder: Path

    def __init__(self, ordinal=0):
        self.blocks = {}

    @contextlib.contextmanager
    def active(self):
        yield

    def memory(self):
        return self.free_bytes, self.free_bytes

    def allocate(self, size):
        block = np.full(max(size, 1) + 256, 0xFF, np.uint8)  # NaN, in fp32 and in fp16
        address = -(-block.ctypes.data // 256) * 256  # as a device gives it
        self.blocks[address] = block
        return address

    def free(self, address):
        del self.blocks[address]

    def pinned(self, shape, dtype):
        return np.empty(shape, dtype)

    def upload(self, address, values):
        assert values.flags.c_contiguous
        ctypes.memmove(address, values.ctypes.data, values.nbytes)

    def download(self, values, address):
        assert values.flags.c_contiguous
        ctypes.memmove(values.ctypes.data, address, values.nbytes)

    def wait(self):
        pass

    def kernels(self, source, names):
        library = compile_kernels(source, self.folder)

        def launcher(name):
            function = getattr(library, f"launch_{name}")

            def launch(threads, *arguments):
                function(ctypes.c_longlong(threads), *(TYPES[a.dtype.name](int(a)) for a in arguments))

            return launch

        return {name: launcher(name) for name in names}

    def close(self):
        self.blocks.clear()
