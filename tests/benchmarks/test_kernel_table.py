"""The table of registers, shared memory, spills and occupancy."""

from pathlib import Path

import pytest
from diinn.benchmarks import sass
from diinn.benchmarks.__main__ import main as bench
from diinn.runtime.gpu import compiler


def test_the_table_is_made_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if compiler.find_nvcc() is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    monkeypatch.setattr(compiler, "CAPABILITIES", ("8.7",))
    assert bench(["kernels", "--out", str(tmp_path / "kernels.md")]) == 0
    printed = capsys.readouterr().out.split("| instructions |")[0]
    found = {line.split("|")[1].strip(): line for line in printed.splitlines() if line.startswith("|")}
    assert {"fused_16_resident", "fused_64_resident", "fused_256_streamed", "make_queries", "planar_rgb"} <= {*found}
    cells = [cell.strip() for cell in found["fused_256_streamed"].split("|")]
    assert cells[4:7] == ["160", "0", "8 of 48"]
    assert "fused_256_streamed" in (tmp_path / "kernels.md").read_text()


def test_instructions_of_a_tile_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand from the same machine code: products of N layers, sines of N layers; of the rest a bound."""
    nvcc = compiler.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc: install the CUDA toolkit")
    if sass.find_disassembler(nvcc) is None:
        pytest.skip("no nvdisasm: pip install nvidia-cuda-nvdisasm")
    monkeypatch.setattr(compiler, "CAPABILITIES", ("8.7",))
    assert bench(["kernels"]) == 0
    tables = capsys.readouterr().out.split("| instructions |")
    found = {row.split("|")[1].strip(): row.split("|") for row in tables[1].splitlines() if row.startswith("| fused")}
    for width, most in ((16, 1063), (32, 1801), (64, 3280)):  # 0.6 of what it was at first
        cells = [int(cell) for cell in found[f"fused_{width}_resident"][2:-1]]
        steps = width // 16
        assert cells[0] <= most
        assert cells[0] == pytest.approx(sum(cells[1:]), abs=4)
        assert cells[1] == 3 * steps * steps * 8 + 2 * steps
        assert cells[2] == 4 * 4 * width // 4 + 1  # layers, rows of a lane, its units; a division
    assert not {f"fused_{width}_resident_reduced" for width in (16, 32, 64, 128)} - {*found}


LOOPS = """
.text.two:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   FMUL R3, R3, R3 ;
        /*0040*/                   CALL.REL.NOINC `($slow) ;
.L_x_2:
        /*0050*/                   MUFU.SIN R3, R3 ;
        /*0060*/               @P1 BRA `(.L_x_3) ;
        /*0070*/                   LDG.E R4, [R4.64] ;
        /*0080*/                   STS [R5], R4 ;
        /*0090*/                   BRA `(.L_x_4) ;
.L_x_3:
        /*00a0*/                   FADD R6, R6, R6 ;
.L_x_4:
        /*00b0*/               @P2 BRA `(.L_x_4) ;
        /*00c0*/               @P3 BRA `(.L_x_1) ;
        /*00d0*/                   EXIT ;
"""


def test_the_longest_way_without_calls_counts(tmp_path: Path) -> None:
    tool = tmp_path / "nvdisasm"
    tool.write_text(f"#!/bin/sh\ncat <<'END'{LOOPS}END\n")
    tool.chmod(0o755)
    blocks = sass.functions(tool, b"")["two"]
    paths = sass.Paths(blocks, lambda paths, loop: 5)
    around = paths.outermost(lambda opcodes: bool(opcodes["MUFU.SIN"]))
    found = paths.one_pass(around)
    assert found == {"IADD3": 1, "BRA": 1 + 1 + 1 + 5 + 1, "MUFU.SIN": 1, "LDG.E": 1, "STS": 1}
    kinds = sass.by_kind(found)
    assert (kinds["control"], kinds["global"], kinds["shared"], kinds["integer"], kinds["fp32"]) == (9, 1, 1, 1, 0)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(compiler, "find_nvcc", lambda: None)
    assert bench(["kernels"]) == 2
    assert "no nvcc" in capsys.readouterr().err
