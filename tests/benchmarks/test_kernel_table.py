"""The table of registers, shared memory, spills and occupancy."""

from pathlib import Path

import pytest
from diinn.benchmarks.__main__ import main as bench
from diinn.runtime.gpu import compiler


def test_the_table_is_made_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if compiler.find_nvcc() is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    monkeypatch.setattr(compiler, "CAPABILITIES", ("8.7",))
    assert bench(["kernels", "--out", str(tmp_path / "kernels.md")]) == 0
    found = {line.split("|")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.startswith("|")}
    assert {"fused_16_resident", "fused_64_resident", "fused_256_streamed", "make_queries", "planar_rgb"} <= {*found}
    cells = [cell.strip() for cell in found["fused_256_streamed"].split("|")]
    assert cells[4:7] == ["160", "0", "8 of 48"]
    assert "fused_256_streamed" in (tmp_path / "kernels.md").read_text()


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compiler, "find_nvcc", lambda: None)
    assert bench(["kernels"]) == 2
    assert "no nvcc" in capsys.readouterr().err
