"""``export/to_trt.py``: a checkpoint becomes a bundle, then what ``diinn-build`` makes of it."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, play
from diinn.export import to_trt
from diinn.runtime.bundles import bundle as bundles

Patch = pytest.MonkeyPatch
Output = pytest.CaptureFixture[str]


def run(*args: object) -> int:
    return to_trt.main([str(a) for a in args])


def test_a_checkpoint_without_tensorrt(bare: None, checkpoint_path: Path, tmp_path: Path, capsys: Output) -> None:
    checkpoint = Path(shutil.copy(checkpoint_path, tmp_path))
    assert run(checkpoint) == 0
    output = capsys.readouterr().out.splitlines()
    assert "tiny.diinn: written; differs from PyTorch by" in output[0]
    assert "fp16 graphs checked on the CPU" in output[1]
    assert output[-1].startswith("NO ENGINE BUILT: TensorRT is not installed")
    assert output[-1].endswith("On the target run: diinn-build tiny.diinn")
    assert {*bundles.load(tmp_path / "tiny.diinn").graphs} == {"fp32", "fp16"}
    assert run(checkpoint, "--require-engine", "--precision", "fp32", "--frame-sizes", "320x240", "--cameras", 4) == 2
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith("diinn-build tiny.diinn --precision fp32 --frame-sizes 320x240 --cameras 4")
    assert run(tmp_path / "tiny.diinn", "--verify") == 2


def test_a_dry_run_for_precision_flags_names_the_layers_in_fp32(trt: Patch, capsys: Output) -> None:
    play("8.5.2.2", trt)
    assert run("small", "--dry-run") == 0
    _, decoder, _ = (shlex.split(line) for line in capsys.readouterr().out.splitlines())
    assert {"--fp16", "--precisionConstraints=obey", "--noTF32"} <= {*decoder}
    for name in ("--layerPrecisions=", "--layerOutputTypes="):
        assert any("/decoder/Sin_1:fp32" in option for option in decoder if option.startswith(name))


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (("none.pth",), "no checkpoint 'none.pth'"),
        (("small", "--out", "x.diinn"), "--out is for checkpoints"),
        (("small", "--workspace", "0"), "--workspace 0"),
    ],
)
def test_bad_input_is_one_line(bare: None, args: tuple[str, ...], word: str, capsys: Output) -> None:
    assert run(*args) == 2
    error = capsys.readouterr().err.strip()
    assert word in error
    assert "\n" not in error


def test_it_runs_as_a_file(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "export" / "to_trt.py"), "--help"]
    assert subprocess.run(command, capture_output=True, check=False, cwd=tmp_path).returncode == 0
