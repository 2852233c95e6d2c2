"""Which decoder a CPU gets, and what is logged without its own: compilers, caches and libraries that fail."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
from conftest import ramp
from diinn.runtime import DiinnError, InputError, SuperResolver
from diinn.runtime.cpu import compiler
from diinn.runtime.geometry.view import View
from diinn.runtime.noise.strength import Strength
from diinn.runtime.util import compiling

Patch, Log = pytest.MonkeyPatch, pytest.LogCaptureFixture
needs_compiler = pytest.mark.skipif(not compiler.find_compiler(), reason="no C++ compiler here: apt-get install g++")


@pytest.fixture
def fresh(monkeypatch: Patch, tmp_path: Path, caplog: Log) -> Iterator[Path]:
    """A machine whose cache is empty and that has not looked for a decoder yet; the folder of what is kept."""
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "cache" / "engines"))
    caplog.set_level("INFO")
    compiler.forget()
    yield tmp_path / "cache" / "kernels"
    compiler.forget()


def pixels(bundle: Path, decoder: str | None = None) -> tuple[np.ndarray, str]:
    """A picture, and what made it."""
    with SuperResolver.open(bundle, backend="onnxruntime", decoder=decoder) as resolver:
        return resolver.resize(ramp(20, 30), (50, 40), dtype=np.float32), resolver.backend.describe()


def said(caplog: Log, level: str = "WARNING") -> list[str]:
    return [r.message for r in caplog.records if r.levelname == level and r.name.startswith("diinn")]


def stand_in(folder: Path, script: str) -> Path:
    """A C++ compiler that is a shell script."""
    path = folder / "bin" / "c++"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_number_of_threads_gives_the_same(bundle_path: Path, threads: int) -> None:
    """As ONNX Runtime's decoder does: several cameras of two strengths, views of every kind, in bands too."""
    frames = [ramp(33, 21), ramp(33, 21)[::-1].copy()]
    strengths = [Strength(), Strength(20, 50)]
    x, y = np.meshgrid(np.linspace(-2, 22, 31, dtype=np.float32), np.linspace(0, 32, 27, dtype=np.float32))
    views = [View.resize((63, 70)), View.roi((1.5, 2.25, 5, 7.5), (13, 31)), View.remap(x, y, border_value=0.5)]
    options = {"backend": "onnxruntime", "threads": threads, "chunk": 100 * threads}
    with (
        SuperResolver.open(bundle_path, decoder="onnx", **options) as theirs,  # type: ignore[arg-type]
        SuperResolver.open(bundle_path, decoder="fused", **options) as ours,  # type: ignore[arg-type]
    ):
        assert f"decoder fused {compiler.library().instructions}" in ours.backend.describe()
        assert "decoder CPU" in theirs.backend.describe()
        for kind, most in ((np.float32, 1e-5), (np.uint8, 1)):
            right, found = (
                r.decode_all([(e, views) for e in r.encode(frames, strengths)], dtype=kind)  # type: ignore[arg-type]
                for r in (theirs, ours)
            )
            for wanted, images in zip(right, found, strict=True):
                for want, image in zip(wanted, images, strict=True):
                    gap = np.abs(image.astype(np.float64) - want)
                    assert gap.max() <= most
                    assert kind is np.uint8 or np.sqrt(np.mean(gap**2)) < 5e-7
        whole = ours.decode(ours.encode(frames[:1])[0], views)
        *_, stepped = ours.decode_in_steps(ours.encode(frames[:1])[0], views[0])
        np.testing.assert_array_equal(stepped, whole[0])
        ours.memory_budget = ours.bundle.workspace * 21 * (4 * ours.bundle.radius + 1)
        assert ours.encode(frames[:1])[0].maps is None
        for want, image in zip(whole, ours.decode(ours.encode(frames[:1])[0], views), strict=True):
            assert np.abs(image.astype(int) - want).max() <= 1


@needs_compiler
@pytest.mark.parametrize(("width", "depth"), [(8, 1)])
def test_other_bundles(tmp_path: Path, width: int, depth: int) -> None:
    pytest.importorskip("torch", reason="no PyTorch: it makes checkpoints")
    bundle = tiny.of_layers(tmp_path, width, depth)
    (right, _), (found, by) = pixels(bundle, "onnx"), pixels(bundle)
    assert "decoder fused" in by
    np.testing.assert_allclose(found, right, atol=1e-5)


@pytest.mark.parametrize("decoder", [{"width": 20}, {"width": 16, "modulation": "mz"}])
def test_a_decoder_without_a_kernel_is_run_by_onnx_runtime(
    tmp_path: Path, fresh: Path, caplog: Log, decoder: dict[str, object]
) -> None:
    pytest.importorskip("torch", reason="no PyTorch: it makes checkpoints")
    bundle = tiny.of_layers(tmp_path, depth=2, **decoder)  # type: ignore[arg-type]
    caplog.clear()
    assert "decoder CPU" in pixels(bundle)[1]
    assert [line for line in said(caplog) if "was trained for" not in line] == []
    (why,) = [line for line in said(caplog, "INFO") if line.startswith("ONNX Runtime decodes: ")]
    assert not fresh.exists()  # nothing was compiled for it
    wide = f"no fused kernel on a CPU for a decoder {decoder['width']} wide"
    assert ("holds no layers.npz" if "modulation" in decoder else wide) in why
    with pytest.raises(InputError, match=r"layers\.npz|no fused kernel on a CPU"):
        pixels(bundle, "fused")


def test_without_a_compiler_onnx_runtime_decodes(
    bundle_path: Path, fresh: Path, monkeypatch: Patch, caplog: Log
) -> None:
    right, _ = pixels(bundle_path, "onnx")
    monkeypatch.setenv("PATH", str(fresh))
    for _ in range(2):
        caplog.clear()
        found, by = pixels(bundle_path)
        assert "decoder CPU" in by
        np.testing.assert_array_equal(found, right)
        assert said(caplog) == []
        (why,) = [line for line in said(caplog, "INFO") if line.startswith("ONNX Runtime decodes: ")]
        assert "no C++ compiler and no prebuilt decoder for this processor: apt-get install g++" in why
    with pytest.raises(InputError, match="no C\\+\\+ compiler"):
        pixels(bundle_path, "fused")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'decoder.cpp:1: fatal error: math.h: no such file' >&2; exit 1", "cannot compile decoder.cpp: .*math.h"),
        ("kill -9 $$", "cannot compile decoder.cpp: exit code -9"),
        ("exit 0", "cannot compile decoder.cpp: exit code 0"),
        ('for a; do last=$out; out=$a; done; echo "no library" > "$last"', "does not load: .*(invalid ELF|too short)"),
    ],
)
def test_a_compiler_that_fails_is_one_warning(
    bundle_path: Path, fresh: Path, monkeypatch: Patch, caplog: Log, tmp_path: Path, script: str, message: str
) -> None:
    right, _ = pixels(bundle_path, "onnx")
    monkeypatch.setenv("CXX", str(stand_in(tmp_path, script)))
    found, by = pixels(bundle_path)
    assert "decoder CPU" in by
    np.testing.assert_array_equal(found, right)
    (warning,) = said(caplog)
    assert warning.startswith("ONNX Runtime decodes: ")
    with pytest.raises(DiinnError, match=message):
        pixels(bundle_path, "fused")


@needs_compiler
def test_a_library_that_is_wrong_is_not_used(
    bundle_path: Path, fresh: Path, monkeypatch: Patch, caplog: Log, tmp_path: Path
) -> None:
    right, _ = pixels(bundle_path, "onnx")
    text = compiler.SOURCE.read_text()
    assert text.count("p * z - 0.1666") == 1
    (tmp_path / "decoder.cpp").write_text(text.replace("p * z - 0.1666", "p * z - 0.1266"))
    monkeypatch.setattr(compiler, "SOURCE", tmp_path / "decoder.cpp")
    found, by = pixels(bundle_path)
    assert "decoder CPU" in by
    np.testing.assert_array_equal(found, right)
    (warning,) = said(caplog)
    assert warning.startswith("ONNX Runtime decodes, not the compiled decoder: ")
    assert "differs by" in warning
    with pytest.raises(DiinnError, match="differs by"):
        pixels(bundle_path, "fused")


@needs_compiler
def test_it_is_compiled_once(bundle_path: Path, fresh: Path, monkeypatch: Patch) -> None:
    first, by = pixels(bundle_path)
    assert "decoder fused" in by
    (kept,) = fresh.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    compiler.forget()
    monkeypatch.setattr(compiling, "compiled", lambda *_: pytest.fail("compiled again"))
    np.testing.assert_array_equal(pixels(bundle_path)[0], first)


@needs_compiler
@pytest.mark.parametrize("what", ["cut short", "changed", "empty", "another user's", "writable by others", "a link"])
def test_a_kept_library_that_is_not_ours_is_compiled_again(
    bundle_path: Path, fresh: Path, monkeypatch: Patch, caplog: Log, what: str
) -> None:
    pixels(bundle_path)
    (kept,) = fresh.iterdir()
    good = kept.read_bytes()
    if what == "another user's":
        if os.getuid():
            pytest.skip("files are given away by root alone")
        os.chown(kept, 12345, -1)
    elif what == "writable by others":
        kept.chmod(0o666)
    elif what == "a link":
        kept.rename(fresh / "elsewhere")
        kept.symlink_to(fresh / "elsewhere")
    else:
        kept.write_bytes({"cut short": good[:-5000], "changed": b"\x7fELF" + good[5:], "empty": b""}[what])
    compiler.forget()
    assert "decoder fused" in pixels(bundle_path)[1]
    assert said(caplog) == []
    assert not kept.is_symlink()
    assert kept.stat().st_uid == os.getuid()
    assert compiling.read_kept(kept)


@needs_compiler
def test_a_library_of_another_processor_is_left_alone(
    bundle_path: Path, fresh: Path, monkeypatch: Patch, tmp_path: Path
) -> None:
    """A home folder that moved: its library may hold instructions that are not there."""
    pixels(bundle_path)
    (kept,) = fresh.iterdir()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu sse2 another\n\n")
    monkeypatch.setattr(compiler, "CPU_FACTS", tmp_path / "cpuinfo")
    compiler.forget()
    pixels(bundle_path)
    assert len(list(fresh.iterdir())) == 2
    assert kept.exists()
    (tmp_path / "cpuinfo").unlink()  # what is not known is not used
    commands = []
    monkeypatch.setattr(compiling, "compiled", lambda command, source: commands.append(command) or (b"", ""))
    compiler.forget()
    pixels(bundle_path)
    assert "-march=native" not in commands[0]


@needs_compiler
@pytest.mark.parametrize("what", ["no folder", "full disk"])
def test_a_cache_that_cannot_be_written_is_one_warning(
    bundle_path: Path, fresh: Path, monkeypatch: Patch, caplog: Log, tmp_path: Path, what: str
) -> None:
    if what == "no folder":
        (tmp_path / "cache").write_text("a file")
    else:

        def full(file: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    assert "decoder fused" in pixels(bundle_path)[1]
    (warning,) = said(caplog)
    assert "cannot keep the compiled decoder.cpp" in warning
    assert not fresh.exists() or not list(fresh.iterdir())  # no part of it either


@needs_compiler
def test_a_full_disk_while_compiling(
    bundle_path: Path, fresh: Path, monkeypatch: Patch, caplog: Log, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    assert "decoder CPU" in pixels(bundle_path)[1]
    (warning,) = said(caplog)
    assert f"no room to compile decoder.cpp in {tmp_path / 'gone'}" in warning


OPENS = """
import sys
from diinn.runtime import SuperResolver
with SuperResolver.open(sys.argv[1], backend="onnxruntime", decoder="fused") as resolver:
    print(resolver.backend.describe())
"""


@needs_compiler
def test_two_processes_at_once(bundle_path: Path, fresh: Path) -> None:
    command = [sys.executable, "-c", OPENS, str(bundle_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert "decoder fused" in out
    assert len(list(fresh.iterdir())) == 1


@needs_compiler
@pytest.mark.parametrize("what", ["fits", "another source", "damaged", "another processor", "not there"])
def test_a_library_made_beforehand(
    bundle_path: Path, fresh: Path, monkeypatch: Patch, tmp_path: Path, what: str
) -> None:
    machine = os.uname().machine
    if machine not in compiler.TARGETS or not {*compiler.TARGETS[machine][1]} <= {*compiler.features()}:
        pytest.skip("nothing is made beforehand for this processor")
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "prebuilt")
    path = compiler.prebuild(machine, compiler.find_compiler())
    card = json.loads(path.with_suffix(".json").read_text())
    if what == "another source":
        path.with_suffix(".json").write_text(json.dumps(card | {"source": "0" * 64}))
    elif what == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    elif what == "another processor":
        monkeypatch.setitem(compiler.TARGETS, machine, (compiler.TARGETS[machine][0], ("quantum",)))
    elif what == "not there":
        path.unlink()
    monkeypatch.setenv("PATH", str(fresh))
    assert ("decoder fused" in pixels(bundle_path)[1]) == (what == "fits")
    if what == "fits":
        assert compiler.library().origin == "prebuilt"
        assert not fresh.exists()


@needs_compiler
def test_a_compiler_that_fails_leaves_the_library_made_beforehand(
    bundle_path: Path, fresh: Path, monkeypatch: Patch, tmp_path: Path, caplog: Log
) -> None:
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "prebuilt")
    if os.uname().machine not in compiler.TARGETS:
        pytest.skip("nothing is made beforehand for this processor")
    compiler.prebuild(os.uname().machine, compiler.find_compiler())
    monkeypatch.setenv("CXX", str(stand_in(tmp_path, "exit 1")))
    assert "decoder fused" in pixels(bundle_path)[1]
    (warning,) = said(caplog)
    assert warning.endswith("the prebuilt decoder is used")


@needs_compiler
def test_libraries_are_made_for_wheels(monkeypatch: Patch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path / "prebuilt")
    assert compiler.main([]) == 0
    made = {path.name for path in (tmp_path / "prebuilt").glob("*.so")}
    assert f"decoder-{os.uname().machine}.so" in made
    assert ("decoder-aarch64.so" in made) == (shutil.which("aarch64-linux-gnu-g++") is not None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiler.main([]) == 2
    assert "no compiler: apt-get install g++-aarch64-linux-gnu" in capsys.readouterr().err


@needs_compiler
def test_the_environment_chooses_where_nothing_else_does(bundle_path: Path, monkeypatch: Patch) -> None:
    assert "decoder fused" in pixels(bundle_path)[1]
    monkeypatch.setenv("DIINN_CPU_DECODER", "onnxruntime")
    assert "decoder CPU" in pixels(bundle_path)[1]
    assert "decoder fused" in pixels(bundle_path, "fused")[1]
    monkeypatch.setenv("DIINN_CPU_DECODER", "fuzed")
    with pytest.raises(InputError, match="unknown DIINN_CPU_DECODER 'fuzed': did you mean 'fused'"):
        pixels(bundle_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": "fuzed"}, "unknown decoder 'fuzed': did you mean 'fused'"),
        ({"decoder": "engine", "backend": "onnxruntime"}, "backend onnxruntime has no engine decoder, only tensorrt"),
        ({"decoder": "onnx", "backend": "cuda"}, "backend cuda has no onnx decoder, only onnxruntime"),
        (
            {"decoder": "fused", "backend": "tensorrt"},
            "backend tensorrt has no fused decoder, only cuda or onnxruntime",
        ),
    ],
)
def test_decoders_that_a_backend_has_not(bundle_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SuperResolver.open(bundle_path, **options)  # type: ignore[arg-type]


@needs_compiler
def test_fused_on_a_machine_without_a_gpu_is_the_cpus(bundle_path: Path) -> None:
    with SuperResolver.open(bundle_path, decoder="fused") as resolver:
        assert resolver.backend.name == "onnxruntime"
        assert "decoder fused" in resolver.backend.describe()


@needs_compiler
def test_the_encoder_is_on_a_gpu_and_the_decoder_on_the_cpu(bundle_path: Path, monkeypatch: Patch) -> None:
    """Chosen apart: what ONNX Runtime's provider for GPUs encodes, the CPU's own kernel decodes."""
    from diinn.runtime.util import cuda_driver
    from diinn.runtime.util.onnx_runtime import ort

    class Session(ort.InferenceSession):  # type: ignore[misc]
        def __init__(self, content: bytes, options: object, providers: list[object], enable_fallback: int) -> None:
            self.says = [providers[0][0]]  # type: ignore[index]
            super().__init__(content, options, providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return self.says

    right, _ = pixels(bundle_path, "onnx")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(cuda_driver, "missing", lambda: "")
    found, by = pixels(bundle_path)
    assert "encoder CUDA, decoder fused" in by
    np.testing.assert_allclose(found, right, atol=1e-5)
    with pytest.raises(InputError, match="the fused decoder of a CPU does not compute on CUDA: leave out --decoder"):
        SuperResolver.open(bundle_path, backend="onnxruntime", provider="cuda", decoder="fused")
