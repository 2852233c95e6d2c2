"""CUDA sources without a GPU: they compile for every architecture, spill nothing, and compiled for the host agree with
``grid``."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import DOUBLE, ROOT
from diinn.runtime import grid
from hypothesis import given, settings
from hypothesis import strategies as st

KERNELS = sorted((ROOT / "runtime" / "kernels").glob("*.cu"))


@pytest.fixture(scope="module")
def device(kernel_folder: Path):  # type: ignore[no-untyped-def]
    """The double, with the kernels compiled by g++."""
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(DOUBLE))
    from host_device import HostDevice

    patch.setattr(HostDevice, "folder", kernel_folder, raising=False)
    found = HostDevice()
    names = ("regular_queries", "gather_rows_4", "gather_rows_2")
    yield found, found.kernels(ROOT / "runtime" / "kernels" / "coordinates_gather.cu", names)
    patch.undo()


@pytest.mark.parametrize("arch", [75, 80, 87, 90, 110])
@pytest.mark.parametrize("source", KERNELS, ids=lambda p: p.stem)
def test_compiles_and_spills_nothing(source: Path, arch: int, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    command = ["nvcc", "-cubin", f"-arch=sm_{arch}", "-Werror", "all-warnings", "-Xptxas", "-v", str(source)]
    done = subprocess.run([*command, "-o", tmp_path / "k.cubin"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert spills
    assert set(spills) == {("0", "0")}


@settings(max_examples=40)
@given(
    layout=st.sampled_from([grid.NEAREST, grid.ENSEMBLE, grid.CORNER]),
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dsize=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    cut=st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)),
    offset=st.integers(-1000, 1000),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_queries_are_those_of_grid(device, layout, source, dsize, cut, offset, part) -> None:  # type: ignore[no-untyped-def]
    _, kernels = device
    rect = (cut[0] * source[0], cut[1] * source[1], source[0] * 0.6, source[1] * 0.6)
    queries = grid.roi(source, rect, dsize, layout)
    first, last = sorted(int(p * queries.count) for p in part)
    index, query = queries.arrays(slice(first, last))
    count, columns = last - first, len(layout.columns)
    tables = [
        np.concatenate([getattr(axis, name) for axis in axes])
        for axes in (queries.rows, queries.cols)
        for name in ("index", "local")
    ]
    found_index, found_query = np.zeros_like(index), np.zeros_like(query)
    sizes = (count, *queries.shape, queries.src_width, offset, len(layout.shifts), columns, layout.weighted)
    pointers = [np.uint64(a.ctypes.data) for a in (*tables, queries.constants, found_index, found_query)]
    kernels["regular_queries"](count, np.int64(first), *(np.int32(n) for n in sizes), *pointers)
    np.testing.assert_array_equal(found_index, index + offset)
    np.testing.assert_array_equal(found_query[:, :2], query[:, :2])
    np.testing.assert_array_max_ulp(found_query[:, 2:], query[:, 2:], 1 if not layout.weighted else 4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rows_are_those_of_take(device, dtype: type) -> None:  # type: ignore[no-untyped-def]
    _, kernels = device
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(37, 5)).astype(dtype)
    index = rng.integers(37, size=101).astype(np.int32)
    found = np.empty((101, 5), dtype)
    pointers = [np.uint64(a.ctypes.data) for a in (rows, index, found)]
    kernels[f"gather_rows_{found.itemsize}"](found.size, np.int64(found.size), np.int32(5), *pointers)
    np.testing.assert_array_equal(found, rows[index])
