"""CUDA sources without a GPU: they compile for every architecture, spill nothing, and compiled for the host agree with
``grid``."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, play_device
from diinn.runtime import DiinnError, InputError
from diinn.runtime.backends.tensorrt import ROWS
from diinn.runtime.geometry import grid
from diinn.runtime.geometry.segments import SEGMENT, Segment
from diinn.runtime.gpu import compiler, nvrtc
from diinn.runtime.gpu.memory import Buffers
from diinn.runtime.gpu.segments import ViewTables
from diinn.runtime.images.arrays import planar_rgb
from diinn.runtime.util.once import Once
from hypothesis import given, settings
from hypothesis import strategies as st

KERNEL_FOLDER = ROOT / "runtime" / "gpu" / "kernels"
KERNELS = sorted(KERNEL_FOLDER.glob("*.cu"))
pytestmark = pytest.mark.device


@pytest.fixture(scope="module")
def device(request: pytest.FixtureRequest, kernel_folder: Path):  # type: ignore[no-untyped-def]
    """What plays a GPU, with the kernels compiled by g++."""
    with pytest.MonkeyPatch.context() as patch:
        kind = play_device(request.config, patch, kernel_folder)
        with contextlib.closing(kind()) as opened:
            yield opened
        assert kind.complaints() == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("source", KERNELS, ids=lambda p: p.stem)
def test_compiles_for_every_architecture_and_spills_nothing(source: Path) -> None:
    nvcc = compiler.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    assert {"7.5", "8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3", "11.0", "12.0", "12.1"} == {
        *compiler.CAPABILITIES
    }
    for arch in (capability.replace(".", "") for capability in compiler.capabilities(nvcc)):
        flags = ["-cubin", f"-arch=sm_{arch}", "-Werror", "all-warnings", "-Xptxas", "-v"]
        code, output = compiler.compiled(nvcc, source, flags)
        assert code[:4] == b"\x7fELF"
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", output)
        assert spills
        assert set(spills) == {("0", "0")}, f"sm_{arch}: {output}"


@pytest.mark.parametrize("source", KERNELS, ids=lambda p: p.stem)
def test_compiles_with_an_older_toolkit(source: Path) -> None:
    """NVRTC of CUDA 12.6, JetPack 6's: what the robot's own compiler takes; no header of the toolkit's is there."""
    require_nvrtc()
    for capability in ("7.5", "8.0", "8.7", "9.0"):
        assert nvrtc.cubin(source, capability)[:4] == b"\x7fELF"


def require_nvrtc() -> None:
    if not nvrtc.version():
        pytest.skip("no NVRTC: pip install 'cuda-bindings<13' nvidia-cuda-nvrtc-cu12")


def test_nvrtc_compiles_where_there_is_no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_nvrtc()
    monkeypatch.setattr(compiler, "find_nvcc", lambda: None)
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "diinn" / "engines"))
    source, newest = KERNEL_FOLDER / "frames.cu", 99000
    code = compiler.machine_code(source, "8.7", newest)
    assert code[:4] == b"\x7fELF"
    monkeypatch.setattr(nvrtc, "cubin", lambda *_: pytest.fail("compiled again"))
    with monkeypatch.context() as patch:
        patch.setattr(nvrtc, "version", lambda: pytest.fail("loaded"))
        assert compiler.machine_code(source, "8.7", newest) == code
        patch.setattr(nvrtc, "FLAGS", (*nvrtc.FLAGS, "--use_fast_math"))
        with pytest.raises(pytest.fail.Exception, match="loaded"):  # what other flags made is not taken
            compiler.machine_code(source, "8.7", newest)
    major = nvrtc.version().split(".")[0]
    said = rf"NVRTC is of CUDA {major}\.\d+, the driver runs up to 11\.4: install an older"
    with pytest.raises(InputError, match=said):
        compiler.machine_code(source, "8.7", 11040)
    with pytest.raises(InputError, match=r"does not compile for compute capability 3\.0: install a newer NVRTC"):
        compiler.machine_code(source, "3.0", newest)


def test_nvrtc_compiles_where_nvcc_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_nvrtc()
    monkeypatch.setenv("CUDA_HOME", str(older_toolkit(tmp_path / "cuda", "35 50", "10.2")))
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "cache"))
    assert compiler.machine_code(KERNEL_FOLDER / "frames.cu", "8.7", 99000)[:4] == b"\x7fELF"


@pytest.mark.parametrize("broken", ["does not run", "no host compiler"])
def test_nvrtc_compiles_where_nvcc_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    require_nvrtc()
    script = tmp_path / "cuda" / "bin" / "nvcc"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\ncase $1 in --*) exit ;; esac\necho 'nvcc fatal error: no g++' >&2\nexit 1\n")
    if broken == "no host compiler":
        script.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "cache" / "engines"))
    monkeypatch.setattr(compiler, "_logged", Once())
    for name in ("frames", "coordinates_gather"):
        assert compiler.machine_code(KERNEL_FOLDER / f"{name}.cu", "8.7", 99000)[:4] == b"\x7fELF"
    (message,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert message.startswith(f"{script} ")
    assert message.endswith("; NVRTC compiles kernels in its place")
    monkeypatch.setattr(nvrtc, "version", lambda: "")
    with pytest.raises(DiinnError, match=r"does not run|no g\+\+"):
        compiler.machine_code(KERNEL_FOLDER / "fused_decoder.cu", "8.7", 99000)


def test_nvrtc_is_not_loaded_where_nvcc_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiler.find_nvcc() is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(nvrtc, "version", lambda: pytest.fail("loaded"))
    assert compiler.machine_code(KERNEL_FOLDER / "frames.cu", "8.7", 99000)[:4] == b"\x7fELF"


def test_what_nvrtc_says_of_a_source_is_one_line(tmp_path: Path) -> None:
    require_nvrtc()
    (tmp_path / "bad.cu").write_text("nonsense;")
    with pytest.raises(DiinnError, match=r"^NVRTC cannot compile bad\.cu: bad\.cu\(1\): error.*$") as caught:
        nvrtc.cubin(tmp_path / "bad.cu", "8.7")
    assert "\n" not in str(caught.value)


@pytest.fixture
def only_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "version", lambda: "")


def test_a_source_that_does_not_compile_is_one_line(tmp_path: Path) -> None:
    nvcc = compiler.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    (tmp_path / "bad.cu").write_text("nonsense;")
    with pytest.raises(DiinnError, match=r"cannot compile bad\.cu: .*error") as caught:
        compiler.compiled(nvcc, tmp_path / "bad.cu", ["-cubin"])
    assert "\n" not in str(caught.value)


def test_machine_code_is_compiled_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiler.find_nvcc() is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "diinn" / "engines"))
    source = KERNEL_FOLDER / "frames.cu"
    first = compiler.machine_code(source, "8.7", 13000)
    (kept,) = (tmp_path / "diinn" / "kernels").iterdir()
    monkeypatch.setattr(compiler, "compiled", lambda *_: pytest.fail("compiled again"))
    assert compiler.machine_code(source, "8.7", 13000) == first
    kept.chmod(0o666)  # anybody may have written it
    with pytest.raises(pytest.fail.Exception, match="compiled again"):
        compiler.machine_code(source, "8.7", 13000)


def older_toolkit(folder: Path, codes: str, release: str = "12.6") -> Path:
    """The real nvcc as an older one, which knows fewer architectures and fails on others."""
    nvcc = compiler.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    known = "|".join(f"sm_{code}" for code in codes.split())
    script = folder / "bin" / "nvcc"
    script.parent.mkdir(parents=True)
    script.write_text(
        f"""#!/bin/sh
case "$*" in
--list-gpu-code) printf '%s\\n' {known.replace("|", " ")}; exit ;;
--version) echo 'Cuda compilation tools, release {release}, V{release}.85'; exit ;;
esac
for code in $(echo "$*" | grep -o 'sm_[0-9]*'); do
    case "$code" in
    {known}) ;;
    *) echo "ptxas fatal: Value '$code' is not defined for option 'gpu-name'" >&2; exit 1 ;;
    esac
done
exec {nvcc} "$@"
"""
    )
    script.chmod(0o755)
    return folder


@pytest.mark.usefixtures("only_nvcc")
def test_an_older_toolkit_makes_what_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``make kernels`` with JetPack 6's toolkit, which knows no Blackwell."""
    home = older_toolkit(tmp_path / "cuda", "86 87 90")
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "prebuilt")
    monkeypatch.setattr(compiler, "KERNELS", tmp_path)  # one small kernel is enough
    (tmp_path / "small.cu").write_text('extern "C" __global__ void nothing() {}')
    assert compiler.main() == 0
    assert "compute capabilities 8.6, 8.7, 9.0, for drivers of CUDA 12.6" in capsys.readouterr().out
    assert (tmp_path / "prebuilt" / "small.fatbin").exists()
    with pytest.raises(InputError, match=r"is of CUDA 12\.6, which does not compile for compute capability 11\.0: set"):
        compiler.machine_code(KERNEL_FOLDER / "frames.cu", "11.0", 13000)


def test_a_toolkit_that_knows_none_of_them_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(older_toolkit(tmp_path / "cuda", "35 50", "10.2")))
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "prebuilt")
    assert compiler.main() == 1
    assert re.search(r"^\S+/nvcc --list-gpu-code names none of 7\.5, 8\.0.*: set CUDA_HOME", capsys.readouterr().err)
    assert not (tmp_path / "prebuilt").exists()


@pytest.mark.usefixtures("only_nvcc")
def test_a_compiler_newer_than_the_driver_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiler.find_nvcc() is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    with pytest.raises(InputError, match=r"is of CUDA \d+\.\d+, the driver runs up to 11\.4: set CUDA_HOME"):
        compiler.machine_code(KERNEL_FOLDER / "frames.cu", "8.7", 11040)


@pytest.mark.usefixtures("only_nvcc")
def test_a_binary_made_beforehand_is_taken_where_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = compiler.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path)
    assert {path.name for path in compiler.prebuild(nvcc, ["8.7", "9.0"])} == {f"{k.stem}.fatbin" for k in KERNELS}
    monkeypatch.setattr(compiler, "find_nvcc", lambda: None)
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "cache"))
    source = KERNEL_FOLDER / "frames.cu"
    assert compiler.machine_code(source, "8.7", 99000) == (tmp_path / "frames.fatbin").read_bytes()
    for capability, driver in (("7.5", 99000), ("8.7", 11040)):
        with pytest.raises(InputError, match=r"no nvcc on PATH.*diinn.runtime.gpu.compiler ran"):
            compiler.machine_code(source, capability, driver)
    (tmp_path / "frames.fatbin").write_bytes(b"changed")
    with pytest.raises(InputError, match="no nvcc"):
        compiler.machine_code(source, "8.7", 99000)


KERNEL_NAMES = {
    "coordinates_gather": ("make_queries", "gather_rows_16", "gather_rows_4", "gather_rows_2", "store_pixels"),
    "frames": ("planar_rgb",),
}


def launch(device, source: str, name: str, threads: int, *arguments: object) -> None:  # type: ignore[no-untyped-def]
    device.kernels(KERNEL_FOLDER / f"{source}.cu", KERNEL_NAMES[source])[name](threads, *arguments)
    device.wait()


def address(values: np.ndarray) -> np.uint64:
    return np.uint64(values.ctypes.data)


def segments(device, parts) -> tuple[np.ndarray, list[object]]:  # type: ignore[no-untyped-def]
    """``SEGMENT``s of (queries, ids, offset, out), one after another; and what has to live as long."""
    table, alive, start = np.zeros(len(parts), SEGMENT), [], 0
    for row, (queries, ids, offset, out) in zip(table, parts, strict=True):
        tables = ViewTables(device, Buffers(device), queries)
        for name, value in tables.fields.items():
            row[name] = value
        row["start"], row["offset"], row["border"] = start, offset, 0.25
        row["out"], row["bytes"] = out.ctypes.data, out.dtype == np.uint8
        if isinstance(ids, slice):
            row["first"] = ids.start
            start += ids.stop - ids.start
        else:
            listed = ids.astype(np.int32)
            row["ids"] = listed.ctypes.data
            start += len(ids)
            alive.append(listed)
        alive.append(tables)
    return table, alive


@settings(max_examples=40)
@given(
    layout=st.sampled_from([grid.NEAREST, grid.ENSEMBLE, grid.CORNER]),
    source=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    dsizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=3),
    cut=st.tuples(st.floats(0, 0.4), st.floats(0, 0.4)),
    offset=st.integers(-1000, 1000),
    part=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    listed=st.booleans(),
)
def test_queries_are_those_of_grid(device, layout, source, dsizes, cut, offset, part, listed) -> None:  # type: ignore[no-untyped-def]
    rect = (cut[0] * source[0], cut[1] * source[1], source[0] * 0.6, source[1] * 0.6)
    views = [grid.roi(source, rect, dsize, layout) for dsize in dsizes]
    if layout is grid.NEAREST:
        x, y = np.meshgrid(np.linspace(-2, source[0], 9), np.linspace(-2, source[1], 7))
        views.append(grid.remap(source, x.astype(np.float32), y.astype(np.float32)))
    parts, wanted = [], []
    for k, queries in enumerate(views):
        first, last = sorted(int(p * queries.count) for p in part)
        ids = np.arange(first, last)[::-1] if listed and k % 2 else slice(first, last)
        index, query = queries.arrays(ids)
        parts.append((queries, ids, offset + k, np.empty(0, np.uint8)))
        wanted.append((index + offset + k, query))
    parts = [p for p, (index, _) in zip(parts, wanted, strict=True) if len(index)]
    index, query = (np.concatenate(values) for values in zip(*wanted, strict=True))
    if not parts:
        return
    table, _alive = segments(device, parts)
    found_index, found_query = np.zeros_like(index), np.zeros_like(query)
    count = len(index) // layout.samples
    sizes = [np.int32(n) for n in (len(layout.shifts), len(layout.columns), layout.weighted)]
    facts = (np.int32(count), np.int32(len(parts)), address(table))
    launch(
        device, "coordinates_gather", "make_queries", count, *facts, *sizes, address(found_index), address(found_query)
    )
    np.testing.assert_array_equal(found_index, index)
    np.testing.assert_array_equal(found_query[:, :2], query[:, :2])
    np.testing.assert_array_max_ulp(found_query[:, 2:], query[:, 2:], 1 if not layout.weighted else 4)


@pytest.mark.parametrize(
    ("dtype", "channels", "piece"),
    [(np.float16, (5, 2), 2), (np.float16, (6, 2), 4), (np.float32, (5, 3), 4), (np.float16, (8, 24), 16)],
)
def test_rows_are_those_of_take(device, dtype: type, channels: tuple[int, ...], piece: int) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(37, c)).astype(dtype) for c in channels]
    index = rng.integers(37, size=101).astype(np.int32)
    found = [np.empty((101, c), dtype) for c in channels]
    table = np.zeros(len(maps), ROWS)
    table["rows"], table["pieces"] = [address(a) for a in found], [m.strides[0] // piece for m in maps]
    each = int(table["pieces"].sum())
    sources = np.array([address(m) for m in maps], np.uint64)
    facts = (np.uint32(101 * each), np.uint32(each), address(table), address(sources), address(index))
    launch(device, "coordinates_gather", f"gather_rows_{piece}", 101 * each, *facts)
    for rows, values in zip(found, maps, strict=True):
        np.testing.assert_array_equal(rows, values[index])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_pixels_are_those_of_the_cpu(device, dtype: type) -> None:  # type: ignore[no-untyped-def]
    x, y = np.meshgrid(np.linspace(-2, 9, 21, dtype=np.float32), np.linspace(0, 6, 5, dtype=np.float32))
    views = [grid.resize((9, 7), (12, 10)), grid.remap((9, 7), x, y)]
    outs = [np.empty((queries.count, 3), dtype) for queries in views]
    rgb = np.random.default_rng(0).uniform(-0.2, 1.2, (sum(map(len, outs)), 3)).astype(np.float32)
    rgb[:4] = [[0.5 / 255, 1.5 / 255, 2.5 / 255], [-1, 2, 0], [1, 1, 1], [254.5 / 255] * 3]
    table, _alive = segments(device, [(q, slice(0, q.count), 0, out) for q, out in zip(views, outs, strict=True)])
    facts = (np.int32(len(rgb)), np.int32(2), address(table), address(rgb))
    launch(device, "coordinates_gather", "store_pixels", len(rgb), *facts)
    for queries, out, part in zip(views, outs, np.split(rgb, [len(outs[0])]), strict=True):
        wanted = np.empty_like(out)
        Segment(queries, slice(0, queries.count), 0, wanted, 0.25).write(part)
        np.testing.assert_array_equal(out, wanted)
    assert views[1].outside is not None  # and so the border was seen


PROBE = """
#include "tile.h"
extern "C" __global__ void units(int count, const float *x, float *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = relu(x[i]);
}
extern "C" __global__ void halves(int count, const float *x, float *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float2 pair = unpack_halves(relu_halves(pack_halves(x[i], x[i])));
    y[i] = pair.x + pair.y;
}
extern "C" __global__ void sines(int count, const float *x, float *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = sine<true>(x[i]);
}
extern "C" __global__ void rounded(int count, const float *x, uint32_t *y) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = byte_of(x[i]);
}
extern "C" __global__ void places(int units, int words, int *found) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= 2 * words) return;
    const Place place = weight_at(units, i / 2, i % 2);
    found[i] = (place.synthesis * units + place.out) * units + place.in;
}
"""


@pytest.fixture
def probe(device, tmp_path: Path):  # type: ignore[no-untyped-def]
    """Functions of the kernels' headers, called one by one."""
    source = tmp_path / "probe.cu"
    source.write_text(PROBE.replace('"tile.h"', f'"{KERNEL_FOLDER / "tile.h"}"'))
    return device.kernels(source, ("units", "halves", "sines", "rounded", "places"))


def test_nan_in_a_map_stays_visible(device, probe) -> None:  # type: ignore[no-untyped-def]
    x = np.float32([np.nan, -np.nan, -1, -0.0, 0, 2, np.inf, -np.inf])
    found = np.empty_like(x)
    for name, times in (("units", 1), ("halves", 2)):  # one value, and the sum of a pair
        probe[name](len(x), np.int32(len(x)), address(x), address(found))
        device.wait()
        np.testing.assert_allclose(found, [np.nan, np.nan, 0, 0, 0, 2 * times, np.inf, 0], rtol=1e-6)


def test_bytes_are_rounded_to_even_and_clamped(device, probe) -> None:  # type: ignore[no-untyped-def]
    x = np.float32([0.5, 1.5, 2.5, -3, 254.5, 255.4, 300, np.nan, np.inf, -np.inf])
    found = np.empty(len(x), np.uint32)
    probe["rounded"](len(x), np.int32(len(x)), address(x), address(found))
    device.wait()
    np.testing.assert_array_equal(found, [0, 2, 2, 0, 254, 255, 255, 0, 255, 0])


@pytest.mark.parametrize(("arch", "instruction"), [("75", "setp.lt"), ("80", "max.NaN.f32"), ("90", "max.NaN.f32")])
def test_nan_stays_visible_in_machine_code(tmp_path: Path, arch: str, instruction: str) -> None:
    nvcc = compiler.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    source = tmp_path / "probe.cu"
    source.write_text(PROBE.replace('"tile.h"', f'"{KERNEL_FOLDER / "tile.h"}"'))
    code, _ = compiler.compiled(nvcc, source, ["-ptx", f"-arch=sm_{arch}"])
    (units,) = re.findall(r"\.entry units\(.*?\n}", code.decode(), re.DOTALL)
    assert instruction in units
    assert "max.f32" not in units  # which makes 0 of NaN


def test_sines_are_right_to_a_few_ulp(device, probe) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    for reach in (1.0, 30.0, 1e4):
        x = rng.uniform(-reach, reach, 20_000).astype(np.float32)
        found = np.empty_like(x)
        probe["sines"](len(x), np.int32(len(x)), address(x), address(found))
        device.wait()
        np.testing.assert_allclose(found, np.sin(x.astype(np.float64)), atol=2e-7 * max(1, reach / 1e3))


@pytest.mark.parametrize("units", [16, 64, 256])
def test_every_weight_has_one_place(device, probe, units: int) -> None:  # type: ignore[no-untyped-def]
    words = units * units  # two values each, of two matrices
    found = np.empty(2 * words, np.int32)
    probe["places"](2 * words, np.int32(units), np.int32(words), address(found))
    device.wait()
    np.testing.assert_array_equal(np.sort(found), np.arange(2 * words))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_frames_are_those_of_the_cpu(device, dtype: type) -> None:  # type: ignore[no-untyped-def]
    frames = (np.random.default_rng(0).uniform(0, 1, (2, 5, 7, 3)) * (255 if dtype is np.uint8 else 1)).astype(dtype)
    for strengths in (np.empty((2, 0), np.float32), np.float32([[0, 4.5], [20, 50]])):
        found = np.empty((2, 3 + strengths.shape[1], 5, 7), np.float32)
        facts = (np.int64(70), np.int32(35), np.int32(dtype is np.uint8), np.int32(strengths.shape[1]))
        launch(device, "frames", "planar_rgb", 70, *facts, address(frames), address(strengths), address(found))
        wanted = [planar_rgb(frame, levels) for frame, levels in zip(frames, strengths.tolist(), strict=True)]
        np.testing.assert_array_equal(found, np.concatenate(wanted))
