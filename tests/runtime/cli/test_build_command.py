"""``diinn-build``: what it leaves without TensorRT, and with (the double of) it."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import play
from diinn.runtime import InputError
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.cli import build
from diinn.runtime.engines.cache import Cache

Patch, Output = pytest.MonkeyPatch, pytest.CaptureFixture[str]


def run(*args: object) -> int:
    return build.main([str(a) for a in args])


def test_a_bundle_without_tensorrt(bare: None, bundle_path: Path, capsys: Output) -> None:
    assert run(bundle_path) == 0
    output = capsys.readouterr().out.splitlines()
    assert "fp16 graphs checked on the CPU" in output[0]
    assert output[-1].startswith("NO ENGINE BUILT: TensorRT is not installed")
    assert output[-1].endswith(f"On the target run: diinn-build {bundle_path.name}")
    assert run(bundle_path, "--require-engine", "--precision", "fp32", "--frame-sizes", "320x240", "--cameras", 4) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"diinn-build {bundle_path.name} --precision fp32 --frame-sizes 320x240 --cameras 4")
    assert run(bundle_path, "--verify") == 2


def test_a_dry_run_prints_trtexec(trt: Patch, capsys: Output, tmp_path: Path) -> None:
    args = ("small", "--dry-run", "--workspace", 512, "--minShapes=frame:1x5x32x32", "--optShapes=frame:2x5x120x160")
    assert run(*args, "--maxShapes=frame:4x5x240x320", "--timingCacheFile", tmp_path / "t") == 0
    encoder, decoder, small = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    assert encoder[0] == decoder[0] == small[0] == "trtexec"
    assert len({line[2] for line in (encoder, decoder, small)}) == 3  # --saveEngine
    assert "--maxShapes=frame:4x5x240x320" in encoder
    assert "--stronglyTyped" in encoder
    assert "--memPoolSize=workspace:512" in encoder
    assert Path(encoder[1].removeprefix("--onnx=")) == bundles.load("small").graph("encoder", "fp16")
    assert any(option.startswith("--optShapes=query:65536x3,map0:65536x32") for option in decoder)
    assert any(option.startswith("--minShapes=query:4096x3,map0:4096x32") for option in small)
    play("8.5.2.2", trt)
    assert run("small", "--dry-run") == 2
    assert "TensorRT 8.5.2.2 these lines name every layer that stays in fp32" in capsys.readouterr().err
    assert not Cache().path.exists()


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0.106"])
def test_engines_are_built_compared_and_kept(trt: Patch, bundle_path: Path, capsys: Output, version: str) -> None:
    play(version, trt)
    assert run(bundle_path, "--cameras", 2, "--frame-sizes", "64x48", "--tacticSources", "EDGE_MASK_CONVOLUTIONS") == 0
    output = capsys.readouterr().out
    assert output.count(" MB, built in ") == 3
    assert "tiny: passed, largest difference" in output
    found = [metadata for _, metadata in Cache().entries() if not isinstance(metadata, str)]
    assert {metadata.key.identity.tensorrt for metadata in found} == {version}
    assert all(metadata.verify["passed"] for metadata in found)
    assert {row["batch"] for row in found[0].verify["rows"]} == {1, 2}
    header = json.loads(next(Cache().path.glob("encoder*.engine")).read_bytes().split(b"\n")[1])
    assert header["shapes"]["frame"] == [[1, 5, 16, 16], [2, 5, 48, 64], [2, 5, 48, 64]]
    assert header["tactics"] is not None
    built = {metadata.built for metadata in found}
    assert run(bundle_path, "--cameras", 2, "--frame-sizes", "64x48", "--verify") == 0
    assert {metadata.built for _, metadata in Cache().entries() if not isinstance(metadata, str)} == built
    assert run(bundle_path, "--cameras", 2, "--frame-sizes", "64x48", "--force") == 0
    assert not {metadata.built for _, metadata in Cache().entries() if not isinstance(metadata, str)} & built


def test_the_engine_asked_for_last_is_the_one_that_is_verified(trt: Patch, bundle_path: Path, capsys: Output) -> None:
    for size in ("64x48", "80x60", "64x48"):
        assert run(bundle_path, "--frame-sizes", size) == 0
    newest = Cache().entries()
    encoder = next(metadata for path, metadata in newest if path.name.startswith("encoder"))
    assert not isinstance(encoder, str)
    assert encoder.key.profile.most["frame"] == (1, 5, 48, 64)


def test_engines_that_are_wrong_are_a_failure(trt: Patch, bundle_path: Path, capsys: Output) -> None:
    trt.setenv("DIINN_DOUBLE_FAIL", "wrong")
    assert run(bundle_path) == 1
    assert "FAILED, largest difference 0.1 (allowed 0.03): use --precision fp32" in capsys.readouterr().err
    trt.setenv("DIINN_DOUBLE_FAIL", "")
    assert run(bundle_path) == 1  # the verdict stands until it is built again
    assert run(bundle_path, "--force") == 0


def test_an_engine_that_the_user_trusts_is_taken_and_compared(
    trt: Patch, bundle_path: Path, capsys: Output, tmp_path: Path
) -> None:
    assert run(bundle_path, "--frame-sizes", "64x48") == 0
    foreign = [Path(shutil.copy(path, tmp_path / f"{n}.engine")) for n, (path, _) in enumerate(Cache().entries())]
    words = [word for path in foreign for word in ("--trust-engine", path)]
    Cache().remove()
    capsys.readouterr()
    assert run(bundle_path, *words) == 0
    output = capsys.readouterr().out
    assert "built in" not in output
    assert output.count(", taken from ") == 3
    assert "tiny: passed" in output
    found = {metadata.key.identity.role: metadata for _, metadata in Cache().entries() if not isinstance(metadata, str)}
    assert found["encoder"].key.profile.most["frame"] == (1, 5, 48, 64)
    assert found["encoder"].verify["passed"]
    assert run(bundle_path, *words, *words) == 2
    assert "a second" in capsys.readouterr().err
    Cache().remove()
    assert run(bundle_path, "--frame-sizes", "64x48", *words[:-2]) == 0
    assert capsys.readouterr().out.count("built in") == 1  # the one that was not given
    foreign[0].write_bytes(b"no engine")
    assert run(bundle_path, "--trust-engine", foreign[0]) == 2
    assert f"--trust-engine '{foreign[0]}': TensorRT 10.13.0.35 does not run" in capsys.readouterr().err
    assert run(bundle_path, "--trust-engine", tmp_path / "none") == 2
    assert "no such file" in capsys.readouterr().err


def test_an_engine_of_another_model_is_not_taken_even_so(trt: Patch, bundle_path: Path, capsys: Output) -> None:
    assert run("nano", "--frame-sizes", "64x48") == 0
    decoder = next(path for path, _ in Cache().entries() if path.name.startswith("decoder"))
    assert run(bundle_path, "--trust-engine", decoder) == 2
    assert "are neither those of an encoder nor of a decoder of tiny" in capsys.readouterr().err


def test_tensorrt_that_is_too_old_is_as_none(trt: Patch, bundle_path: Path, capsys: Output) -> None:
    play("8.4.1", trt)
    assert run(bundle_path) == 0
    assert "NO ENGINE BUILT: TensorRT 8.4.1 is not supported" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("none.diinn",), "no bundle 'none.diinn'"),
        (("small", "--frame-sizes", "0x5"), "write it as WIDTHxHEIGHT"),
        (("small", "--cameras", "0"), "--cameras 0"),
        (("small", "--workspace", "0"), "--workspace 0"),
        (("small", "--precision", "int8"), "has no int8 graphs"),
        (("small", "--optShapes", "frame:1x5x9x9", "--cameras", "2"), "give either"),
        (("small", "--minShapes", "frame:1x5x99x9", "--optShapes", "frame:1x5x9x9"), "min <= opt <= max"),
    ],
)
def test_bad_input_is_one_line(bare: None, args: tuple[str, ...], word: str, capsys: Output) -> None:
    assert run(*args) == 2
    error = capsys.readouterr().err.strip()
    assert word in error
    assert "\n" not in error


def test_a_bundle_needs_neither_torch_nor_onnx(bundle_path: Path, tmp_path: Path) -> None:
    """On the robot, where neither is."""
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'tensorrt'): sys.modules[name] = None\n"
        "from diinn.runtime.cli import build\n"
        "sys.exit(build.main([sys.argv[1], '--dry-run']))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(bundle_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trtexec") == 3
    whole = code.replace("runtime.cli import build", "export import to_trt").replace("build.main", "to_trt.main")
    same = subprocess.run([sys.executable, "-c", whole, str(bundle_path)], capture_output=True, text=True, check=False)
    assert same.stdout == done.stdout


def test_a_compiler_that_is_missing_is_known_before_the_builds(trt: Patch, bundle_path: Path, capsys: Output) -> None:
    from host_device import HostDevice

    def none(*_: object) -> None:
        raise InputError("cannot compile frames.cu for compute capability 8.7: no nvcc on PATH")

    trt.setattr(HostDevice, "kernels", none)
    assert run(bundle_path, "--require-engine") == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("NO ENGINE BUILT: cannot compile frames.cu for compute capability 8.7: no nvcc on PATH")
    assert not [*Cache().path.glob("*.engine")]


@pytest.mark.parametrize(
    ("version", "given", "printed"),
    [
        ("10.3.0", "CUDNN", "+CUDNN,-CUBLAS,-CUBLAS_LT,-EDGE_MASK_CONVOLUTIONS,-JIT_CONVOLUTIONS"),
        ("11.4.0.106", "JIT_CONVOLUTIONS", "+JIT_CONVOLUTIONS,-EDGE_MASK_CONVOLUTIONS"),
    ],
)
def test_trtexec_takes_from_the_libraries_given_alone(
    trt: Patch, bundle_path: Path, capsys: Output, version: str, given: str, printed: str
) -> None:
    play(version, trt)
    assert run(bundle_path, "--dry-run", "--tacticSources", given) == 0
    assert capsys.readouterr().out.count(f"--tacticSources={printed}\n") == 3
