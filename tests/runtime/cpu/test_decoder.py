"""The CPU's decoder against the same layers in NumPy: widths, depths, sets of instructions; sanitizers; aarch64."""

import ctypes
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from diinn.runtime import InputError
from diinn.runtime.cpu import compiler
from diinn.runtime.cpu.decoder import FusedDecoder, Launch
from diinn.runtime.geometry import grid
from diinn.runtime.geometry.grid import Float32, Queries
from diinn.runtime.geometry.segments import Segment
from diinn.runtime.util import compiling
from hypothesis import given, settings
from hypothesis import strategies as st

Layers = dict[str, Float32]
LR = (13, 9)  # (width, height)
CAMERAS = 2
BORDER = 0.25
WIDTHS, DEPTHS = range(8, 72, 8), range(1, 7)
pytestmark = pytest.mark.skipif(not compiler.find_compiler(), reason="no C++ compiler here: apt-get install g++")


def layers(width: int, depth: int) -> Layers:
    """Random weights, with arguments of the sine beyond several periods."""
    made = np.random.default_rng(100 * width + depth)
    shapes = {
        "first": (width, 4),
        "hidden": (depth - 1, 2, width, width),
        "bias": (depth - 1, width),
        "last": (3, width),
        "last_bias": (3,),
    }
    scales = {"first": 4.0, "hidden": 1.5 / np.sqrt(width), "bias": 3.0, "last": 1 / np.sqrt(width), "last_bias": 0.5}
    return {name: made.normal(0, scales[name], shape).astype(np.float32) for name, shape in shapes.items()}


def encoded(width: int, depth: int) -> list[Float32]:
    """Maps of all cameras, [rows, K] each."""
    made = np.random.default_rng(width + depth)
    return [made.normal(0, 0.7, (CAMERAS * LR[0] * LR[1], width)).astype(np.float32) for _ in range(depth)]


def reference(weights: Layers, maps: Sequence[Float32], queries: Queries, offset: int) -> np.ndarray:
    """All queries of a view in float64, BGR [h·w, 3]."""
    index, query = queries.arrays()
    rows = [rows[index + offset].astype(np.float64) for rows in maps]
    w = {name: values.astype(np.float64) for name, values in weights.items()}
    s = np.maximum(rows[0], 0) * np.sin(query @ w["first"][:, :3].T + w["first"][:, 3])
    for (a, q), bias, row in zip(w["hidden"], w["bias"], rows[1:], strict=True):
        s = np.maximum(s @ a.T + row, 0) * np.sin(s @ q.T + bias)
    bgr = (s @ w["last"].T + w["last_bias"])[:, ::-1]
    return bgr if queries.outside is None else np.where(queries.outside[:, None], BORDER, bgr)


def views() -> list[Queries]:
    """Whole frames of odd sizes, several rows a LR row and one, parts at real scales, a map that leaves the frame."""
    x, y = np.meshgrid(np.linspace(-2, 14, 23, dtype=np.float32), np.linspace(-1, 9, 19, dtype=np.float32))
    return [
        grid.resize(LR, (51, 37)),
        grid.resize(LR, LR),
        grid.roi(LR, (1.5, 2.25, 7.3, 4.9), (31, 29)),
        grid.roi(LR, (0.1, 0.2, 12.5, 8.1), (5, 40)),
        grid.remap(LR, x + np.float32(0.2) * np.sin(y), y),
        grid.remap(LR, x, y, replicate=True),
    ]


@dataclass
class Case:
    """Segments with their results of the kernel and of the reference; every other camera's views are parts."""

    segments: list[Segment]
    wanted: list[np.ndarray]

    def check(self) -> None:
        for segment, right in zip(self.segments, self.wanted, strict=True):
            got, want = segment.out[segment.ids], right[segment.ids]
            if segment.out.dtype == np.uint8:
                exact = np.clip(want * 255, 0, 255)
                assert np.abs(got - exact).max() <= 0.5 + 2e-3  # rounding alone
            else:
                scale = max(1.0, float(np.abs(want).max()))
                np.testing.assert_allclose(got, want, atol=1e-5 * scale)
                assert np.sqrt(np.mean((got - want) ** 2)) < 5e-7 * scale
            others = np.ones(len(segment.out), bool)
            others[segment.ids] = False
            assert (segment.out[others] == 77).all()  # nothing else is written


def case(weights: Layers, maps: Sequence[Float32], some: Sequence[Queries] | None = None) -> Case:
    segments, wanted = [], []
    for camera in range(CAMERAS):
        offset = camera * LR[0] * LR[1]
        for number, queries in enumerate(some or views()):
            kind = np.uint8 if (camera + number) % 2 else np.float32
            out = np.full((queries.count, 3), 77, kind)
            ids: grid.Ids = slice(0, queries.count)
            if camera:
                ids = queries.in_rows(2, 6)
                if isinstance(ids, slice):
                    ids = slice(ids.start + 3, ids.stop - 1)  # begins and ends within a row
            segments.append(Segment(queries, ids, offset, out, BORDER))
            wanted.append(reference(weights, maps, queries, offset))
    return Case(segments, wanted)


def decode(library: compiler.Library, weights: Layers, maps: Sequence[Float32], segments: list[Segment]) -> None:
    launch, decoder = Launch(maps, segments), FusedDecoder(weights, library)
    for piece in launch.pieces(200):
        decoder.decode(launch, *piece)


@pytest.fixture(scope="module", params=["native", "x86-64-v3", "x86-64", "clang"])
def library(request: pytest.FixtureRequest) -> compiler.Library:
    """For this processor, for older ones where this is an x86, and by the other compiler."""
    command, options = compiler.find_compiler(), []
    if request.param == "clang":
        command = [shutil.which("clang++") or pytest.skip("no clang++ here: apt-get install clang")]
    if request.param.startswith("x86"):
        if os.uname().machine != "x86_64" or (request.param[-1] == "3" and "avx2" not in compiler.features()):
            pytest.skip(f"this processor is no {request.param}")
        options = [f"-march={request.param}"]
    elif os.uname().machine == "x86_64":
        options = ["-march=native"]
    data, _ = compiling.compiled([*command, *compiler.FLAGS, "-Wall", "-Wextra", "-Werror", *options], compiler.SOURCE)
    return compiler.Library(data, request.param)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("depth", DEPTHS)
def test_every_width_and_depth(library: compiler.Library, width: int, depth: int) -> None:
    weights, maps = layers(width, depth), encoded(width, depth)
    found = case(weights, maps)
    decode(library, weights, maps, found.segments)
    found.check()


@settings(max_examples=40)
@given(data=st.data())
def test_any_part_at_any_size_in_any_pieces(data: st.DataObject) -> None:
    width, depth = 8, 2
    weights, maps = layers(width, depth), encoded(width, depth)
    numbers = st.floats(0, 0.9, allow_subnormal=False)
    x, y = data.draw(numbers) * LR[0], data.draw(numbers) * LR[1]
    w, h = (LR[0] - x) * (1 - data.draw(numbers)), (LR[1] - y) * (1 - data.draw(numbers))
    dsize = data.draw(st.integers(int(w) + 1, 70)), data.draw(st.integers(int(h) + 1, 40))
    queries = grid.roi(LR, (x, y, w, h), dsize)
    first = data.draw(st.integers(0, queries.count - 1))
    ids = slice(first, data.draw(st.integers(first + 1, queries.count)))
    out = np.full((queries.count, 3), 77, np.float32)
    launch = Launch(maps, [Segment(queries, ids, 0, out, 0.0)])
    decoder = FusedDecoder(weights, compiler.library())
    pieces = list(launch.pieces(data.draw(st.integers(1, 300))))
    assert [begin for begin, _ in pieces] == [0, *(end for _, end in pieces[:-1])]
    assert pieces[-1][1] == ids.stop - ids.start
    for piece in reversed(pieces):
        decoder.decode(launch, *piece)
    np.testing.assert_allclose(out[ids], reference(weights, maps, queries, 0)[ids], atol=1e-5)
    assert (np.delete(out, range(ids.start, ids.stop), axis=0) == 77).all()


def test_the_sine_is_as_good_as_stated(library: compiler.Library) -> None:
    x = np.concatenate([np.linspace(-100, 100, 4_000_001), np.linspace(-1e-3, 1e-3, 10_001), [-0.0]]).astype(np.float32)
    y = np.empty_like(x)
    library.sine(x.ctypes.data, y.ctypes.data, len(x))
    assert np.abs(y - np.sin(x.astype(np.float64))).max() <= 1e-6
    bad = np.array([np.nan, np.inf, -np.inf], np.float32)
    library.sine(bad.ctypes.data, bad.ctypes.data, len(bad))
    assert np.isnan(bad).all()


def test_what_is_no_number_does_not_come_out_as_black(library: compiler.Library) -> None:
    weights, maps = layers(16, 3), encoded(16, 3)
    maps[1][5] = np.nan
    queries = grid.resize(LR, LR)
    out, small = np.zeros((queries.count, 3), np.float32), np.full((queries.count, 3), 77, np.uint8)
    decode(library, weights, maps, [Segment(queries, slice(0, queries.count), 0, o, 0.0) for o in (out, small)])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(out).all(1)), [5])
    assert (small[5] == 0).all()


@pytest.mark.parametrize("width", [4, 12, 72, 256])
def test_a_width_without_a_kernel_is_said(width: int) -> None:
    with pytest.raises(InputError, match=f"no fused kernel on a CPU for a decoder {width} wide"):
        FusedDecoder(layers(width, 2), compiler.library())


def blob(data: object) -> bytes:
    content = b"" if data is None else bytes(data)  # type: ignore[call-overload]
    return len(content).to_bytes(8, "little") + content


def write_case(path: Path, weights: Layers, maps: Sequence[Float32], segments: list[Segment]) -> None:
    """What driver.cpp reads."""
    width, depth = maps[0].shape[1], len(maps)
    launch, decoder = Launch(maps, segments), FusedDecoder(weights, compiler.library())
    blobs = [np.array([width, depth, len(segments), 200], np.int32)]
    blobs += [*decoder._arrays.values(), *map(np.ascontiguousarray, maps)]
    kept = {array.ctypes.data: array for array in launch._kept}
    for segment, record in zip(segments, launch.records, strict=True):
        addresses = [int(record[n]) for n in ("ids", "rows", "row_at", "cols", "col_at", "constants", "outside", "out")]
        blobs += [record, np.array([segment.count], np.int64), *(kept.get(address) for address in addresses)]
    path.write_bytes(b"".join(blob(None if data is None else data.tobytes()) for data in blobs))


def run_driver(command: Sequence[str], emulator: Sequence[str], folder: Path) -> None:
    program = folder / "driver"
    built = [*command, "-std=c++17", "-Wall", "-Wextra", "-Wno-psabi", "-Werror", f"-I{compiler.HEADERS}"]
    built += [f"-I{compiler.SOURCE.parent}", str(Path(__file__).parent / "driver.cpp"), "-o", str(program)]
    done = subprocess.run(built, capture_output=True, text=True, check=False)
    if "cannot find -lasan" in done.stderr or "cannot find libasan" in done.stderr:
        pytest.skip("no sanitizers here: apt-get install libasan8 libubsan1, or of this compiler's version")
    assert done.returncode == 0, done.stderr
    for width, depth in ((8, 1), (24, 2), (64, 3)):
        weights, maps = layers(width, depth), encoded(width, depth)
        found = case(weights, maps)
        write_case(folder / "case", weights, maps, found.segments)
        command = [*emulator, str(program), str(folder / "case"), str(folder / "out")]
        environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}  # the driver frees nothing
        ran = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert ran.returncode == 0, ran.stderr
        assert ran.stderr == ""
        content = (folder / "out").read_bytes()
        for segment in found.segments:
            ctypes.memmove(segment.out.ctypes.data, content[: segment.out.nbytes], segment.out.nbytes)
            content = content[segment.out.nbytes :]
        found.check()
        assert content == b""


@pytest.mark.parametrize("option", ["-march=native", "-O0"])
def test_sanitizers_find_nothing(tmp_path: Path, option: str) -> None:
    """A step beyond any array, and undefined behaviour; in the widest vectors, and in the code as it is written."""
    command = [*compiler.find_compiler(), "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    run_driver([*command, option], [], tmp_path)


DAMAGES = [
    ("index[i] = base + cols[from];", "index[i] = base + cols[i];"),  # reads beyond the last column
    ("count - 1; ++i, to", "count; ++i, to"),  # writes four bytes of the last pixel
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_sanitizers_would_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: tuple[str, str]) -> None:
    text = compiler.SOURCE.read_text()
    assert text.count(damage[0]) == 1
    (tmp_path / "decoder.cpp").write_text(text.replace(*damage))
    command = [*compiler.find_compiler(), f"-I{tmp_path}", "-O1", "-g", "-fsanitize=address,undefined"]
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        run_driver(command, [], tmp_path)


def test_on_aarch64(tmp_path: Path) -> None:
    """Cross-compiled, run under QEMU, and NEON's instructions are in it."""
    build, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if build is None or emulator is None:
        pytest.skip("no aarch64 here: apt-get install g++-aarch64-linux-gnu qemu-user")
    run_driver([build, "-O3", "-fno-math-errno", "-static"], [emulator], tmp_path)
    shown = subprocess.run(
        ["aarch64-linux-gnu-objdump", "-d", str(tmp_path / "driver")], capture_output=True, text=True, check=True
    ).stdout
    decoding = shown[shown.index("Work") :]
    assert decoding.count("fmla\tv") >= 16
