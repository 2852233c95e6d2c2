"""The script for a machine with a GPU, tried with the double of one: what it prints; it sees a wrong kernel."""

import re
from pathlib import Path

import pytest
from diinn.benchmarks import gpu, gpu_parity
from diinn.benchmarks.__main__ import main as bench
from diinn.runtime.gpu.decoder import FusedDecoder

Patch, Output = pytest.MonkeyPatch, pytest.CaptureFixture[str]


@pytest.mark.device
def test_checks_and_times(trt: Patch, device_kind: type, tmp_path: Path, capsys: Output) -> None:
    trt.setattr(gpu, "CELLS", (((9, 7), (20, 16), 1), ((9, 7), (12, 10), 2)))
    out = tmp_path / "gpu.md"
    args = ["--widths", "16", "--depth", "2", "--repeats", "1", "--no-compile", "--skip", "sanitize"]
    assert bench(["gpu", *args, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")] for line in output.splitlines() if line.startswith("|")]
    compared = [row for row in rows if row[1] == "16"]
    assert [row[8] for row in compared] == ["right"]
    assert all(re.fullmatch(r"same, \d+ replays", row[7]) for row in compared)
    forms = [row[3] for row in rows if row[2] == "diinn 16"]
    assert forms == ["published, fp32, eager", "published, TF32, eager", "folded, fp16, compiled", "fused kernel"] * 2
    ways = [row[2] for row in rows if row[-2] == "same" and "9x7 → 20x16" in row[1]]
    assert ways == ["copied", "copied, CUDA graphs", "zero-copy", "zero-copy, CUDA graphs"]
    assert {"liif 16", "metasr 16"} <= {row[2] for row in rows if len(row) > 3}
    assert device_kind.name in out.read_text()  # type: ignore[attr-defined]
    assert "fused kernel" in out.read_text()


@pytest.mark.device
def test_a_wrong_kernel_is_seen(trt: Patch, capsys: Output) -> None:
    right = FusedDecoder.decode
    trt.setattr(FusedDecoder, "decode", lambda self, maps, count, *rest: right(self, maps, count - 40, *rest))
    assert bench(["gpu", "--widths", "16", "--depth", "2", "--skip", "sanitize", "time", "copies"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.device
def test_what_was_found_is_shown_however_it_ends(trt: Patch, capsys: Output) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    trt.setattr(gpu, "card", lost)
    assert bench(["gpu", "--widths", "16", "--depth", "2", "--skip", "sanitize", "copies"]) == 1
    printed = capsys.readouterr()
    assert "| right" in printed.out
    assert "unspecified launch failure" in printed.err


@pytest.mark.device
def test_graphs_that_were_never_replayed_are_not_the_same(trt: Patch, device_kind: type, capsys: Output) -> None:
    trt.setattr(device_kind, "captures", False)
    assert bench(["gpu", "--widths", "16", "--depth", "2", "--skip", "sanitize", "time", "copies"]) == 1
    output = capsys.readouterr().out
    assert "NONE REPLAYED" in output
    assert "WRONG" in output


def test_the_sanitizer_sees_every_width(tmp_path: Path, monkeypatch: Patch) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text('#!/bin/sh\necho "$@" >> "$0.log"; echo \'========= ERROR SUMMARY: 0 errors\'\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    output = [*gpu_parity.sanitize(gpu.WIDTHS)]
    assert not any(bad for _, bad in output)
    calls = (tmp_path / "compute-sanitizer.log").read_text().splitlines()
    wanted = [(k, t) for k in ("16", "32", "64", "128", "256") for t in ("memcheck", "racecheck", "synccheck")]
    assert [(re.search(r"--widths (\d+)", c)[1], re.search(r"--tool (\w+)", c)[1]) for c in calls] == wanted  # type: ignore[index]
    assert all("--depth 4 " in call for call in calls)


def test_a_sanitizer_without_an_end_is_ended(tmp_path: Path, monkeypatch: Patch) -> None:
    program = tmp_path / "compute-sanitizer"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpu_parity, "SANITIZE_SECONDS", 0.1)
    output = [*gpu_parity.sanitize([16])]
    assert output == [(f"{tool}, K = 16: no end within 0.1 s", True) for tool in gpu_parity.SANITIZERS]


def test_aims_are_said_to_be_met_or_missed() -> None:
    def row(decoder: str, form: str, milliseconds: float) -> gpu.Time:
        return gpu.Time("48x48 → 512x512", decoder, form, milliseconds, gpu.Work(2e11, 2.7e8, 1e7))

    rivals = [row("liif 256", gpu.PUBLISHED, 20), row("diinn 256", "folded, fp16, compiled", 1)]
    card = gpu.Card(8e14, 3e12, 132, 1.7e9)
    output = gpu.aims([*rivals, row("diinn 256", gpu.FUSED, 0.5)], card)
    assert [line.split(": ", 1)[1] for line in output] == [
        "0.50 of the matrix rate (aim 0.4): met",
        "2.00 times as fast as folded, fp16, compiled (aim 1.5): met",
        "40.00 times as fast as LIIF's published form (aim 15): met",
    ]
    assert all("MISSED" in line for line in gpu.aims([*rivals, row("diinn 256", gpu.FUSED, 5)], card))


def test_without_a_gpu(capsys: Output) -> None:
    assert bench(["gpu"]) == 2
    assert "no NVIDIA driver" in capsys.readouterr().err
