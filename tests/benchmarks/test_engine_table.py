"""The table of engines, with (the double of) TensorRT."""

from pathlib import Path

import pytest
from diinn.benchmarks import engines
from diinn.benchmarks.__main__ import main as bench


def test_builds_compares_times_and_keeps_the_log(
    trt: pytest.MonkeyPatch, bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trt.setattr(engines, "CASES", (((48, 48), (60, 50)), ((20, 30), (40, 60))))
    out = tmp_path / "engines.md"
    assert bench(["engines", str(bundle_path), "--seconds", "0", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    rows = [line.split("|") for line in printed.splitlines() if line.startswith("|")][2:]
    assert [row[2].strip() for row in rows] == ["fp32", "fp32", "fp16", "fp16"]
    assert rows[0][11].strip().startswith("passed, largest difference")
    assert "TensorRT 10.13.0.35, Test double" in printed
    assert "encoder: building in fp16" in out.read_text()


def test_a_failure_stands_in_the_table(
    trt: pytest.MonkeyPatch, bundle_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trt.setenv("DIINN_DOUBLE_FAIL", "build")
    assert bench(["engines", str(bundle_path), "--precision", "fp16", "int8"]) == 1
    printed = capsys.readouterr().out
    assert "out of memory" in printed
    assert "has no int8 graphs" in printed
