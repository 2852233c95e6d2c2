"""``diinn-doctor``: on a laptop with nothing, and on a machine with (the double of) TensorRT."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import play
from diinn.runtime import DiinnError, InputError, SuperResolver
from diinn.runtime.backends import openvino
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.cli import doctor
from diinn.runtime.cpu import compiler
from diinn.runtime.engines.cache import Cache
from diinn.runtime.util import compiling

Patch, Output = pytest.MonkeyPatch, pytest.CaptureFixture[str]


def test_a_laptop_with_nothing(bundle_path: Path, tmp_path: Path, monkeypatch: Patch, capsys: Output) -> None:
    monkeypatch.setenv("DIINN_CACHE", str(tmp_path / "none"))
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert doctor.main([str(bundle_path)]) == 0
    output = capsys.readouterr().out
    assert "TensorRT      not usable: import of tensorrt halted" in output
    assert "GStreamer" in output
    assert "CPU" in output
    assert f"Engines in {tmp_path / 'none'}\n  none" in output
    assert "tensorrt      no: TensorRT is not installed" in output
    assert "cuda          no: no NVIDIA driver here" in output
    assert "onnxruntime   works: onnxruntime" in output
    assert re.search(r"CPU, onnx     \d+\.\d ms to decode 320x240 from 160x120", output)
    assert "Verdict: onnxruntime will be used" in output
    assert not (tmp_path / "none").exists()


def test_the_cpus_own_decoder_is_timed_or_named_as_missing(
    bundle_path: Path, tmp_path: Path, monkeypatch: Patch, capsys: Output
) -> None:
    if compiler.find_compiler():
        assert doctor.main([str(bundle_path)]) == 0
        output = capsys.readouterr().out
        assert f"C++ compiler  {compiler.find_compiler()[0]}, " in output
        assert re.search(r"onnxruntime   works: .*decoder fused \w+", output)
        assert re.search(r"CPU, fused    \d+\.\d ms to decode 320x240 from 160x120", output)
    monkeypatch.setenv("PATH", str(tmp_path))
    compiler.forget()
    assert doctor.main([str(bundle_path)]) == 0
    compiler.forget()
    output = capsys.readouterr().out
    assert "C++ compiler  none: apt-get install g++" in output
    assert re.search(r"CPU, fused    no: no C\+\+ compiler .*: apt-get install g\+\+ \(.*ONNX Runtime's time", output)
    assert re.search(r"onnxruntime   works: .*decoder CPU", output)


@pytest.mark.parametrize("amx", [False, True])
def test_encoders_are_timed_or_named_as_missing(
    bundle_path: Path, monkeypatch: Patch, capsys: Output, *, amx: bool
) -> None:
    monkeypatch.setattr(openvino, "features", lambda: ("amx_bf16",) if amx else ())
    monkeypatch.setattr(openvino, "_devices", lambda: InputError("OpenVINO is not installed: pip install it"))
    assert doctor.main([str(bundle_path)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"CPU, fp32     \d+\.\d ms to encode 160x120", output)
    assert "\n  OpenVINO      OpenVINO is not installed: pip install it\n" in output
    without = "OpenVINO      no faster on this processor, which has no AMX"
    missing = r"OpenVINO bf16 no: OpenVINO is not installed: pip install it \(on an Intel Xeon with AMX it takes"
    assert (without in output) is not amx
    assert (re.search(missing, output) is not None) is amx


def test_openvino_is_timed(bundle_path: Path, monkeypatch: Patch) -> None:
    try:
        openvino.devices()
    except DiinnError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(openvino, "features", lambda: ("amx_bf16",))
    facts = dict(doctor.encoders(bundles.load(bundle_path)))
    assert re.fullmatch(r"\d+\.\d ms to encode 160x120", facts["OpenVINO bf16"])
    assert re.fullmatch(r"CPU.*, plugin \d+\.\S+", dict(doctor.machine())["OpenVINO"])


def test_engines_are_listed_judged_and_cleaned(
    trt: pytest.MonkeyPatch, bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    SuperResolver.open(bundle_path, backend="tensorrt").close()
    assert doctor.main([str(bundle_path)]) == 0
    output = capsys.readouterr().out
    assert output.count("TensorRT 10.13.0.35, Test double") == 3
    assert output.count("passed, largest difference") == 3
    assert "TensorRT      10.13.0.35, makes a builder" in output
    assert "CUDA device   Test double, compute capability 8.7, 4096 of 4096 MiB free, by the double" in output
    assert output.count("largest and rms difference to onnxruntime") == 2  # the decoder for small chunks by itself
    assert "Verdict: cuda will be used" in output
    engine = next(Cache().path.glob("encoder*.engine"))
    engine.write_bytes(b"foreign")
    Cache().metadata_path(
        next(metadata.key for _, metadata in Cache().entries() if not isinstance(metadata, str))
    ).write_text("{")
    play("10.3.0", trt)  # another version: nothing there is for it
    assert doctor.main([str(bundle_path)]) == 0
    output = capsys.readouterr().out
    assert "not used" in output
    assert "damaged" in output
    assert "Verdict: onnxruntime will be used" in output
    assert doctor.main(["--clean", "nothing.engine"]) == 2
    assert "diinn-doctor lists them" in capsys.readouterr().err
    assert doctor.main(["--clean", engine.name]) == 0
    assert not engine.exists()
    kept = compiling.kept("decoder", "a key", ".so")
    compiling.keep(kept, b"code", "decoder")
    (foreign := kept.with_name("notes.json")).write_text("{}")
    assert doctor.main(["--clean"]) == 0
    assert capsys.readouterr().out.count("MiB removed") == 3
    assert not [p for p in Cache().path.iterdir() if p.suffix != ".lock"]
    assert not kept.exists()
    assert foreign.exists()


@pytest.mark.parametrize(
    ("failing", "message"),
    [
        ("gpu", "builds nothing here: TensorRT finds no usable GPU: check the driver"),
        ("no driver", r"builds nothing here: TensorRT crashes \(SIGSEGV\): check the driver"),
    ],
)
def test_a_builder_that_cannot_be_made_is_said(trt: Patch, failing: str, message: str) -> None:
    trt.setenv("DIINN_DOUBLE_FAIL", failing)
    (output,) = [value for name, value in doctor.machine() if name == "TensorRT"]
    assert re.fullmatch(rf"10\.13\.0\.35, {message}.*", output)


def test_the_real_builder_is_made(builder: Patch) -> None:
    (output,) = [value for name, value in doctor.machine() if name == "TensorRT"]
    assert output == "11.4.0.106, makes a builder"


def test_no_backend_is_exit_code_1(bundle_path: Path, monkeypatch: Patch, capsys: Output) -> None:
    for name in ("tensorrt", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("backends.onnxruntime", "util.onnx_runtime"):
        monkeypatch.delitem(sys.modules, f"diinn.runtime.{name}", raising=False)
    assert doctor.main([str(bundle_path)]) == 1
    assert "no backend works here" in capsys.readouterr().out


def test_the_doctor_needs_neither_torch_nor_opencv() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'cv2', 'onnx'): sys.modules[name] = None\n"
        "from diinn.runtime.cli import doctor\n"
        "print([v for n, v in doctor.machine() if n == 'OpenCV'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "not usable" in done.stdout
