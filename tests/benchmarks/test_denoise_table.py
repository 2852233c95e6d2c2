"""What auto costs, as the benchmark prints it."""

import re
from pathlib import Path

import pytest
from diinn.benchmarks import denoise
from diinn.benchmarks.__main__ import main as bench


def test_time_error_and_what_clean_frames_lose(
    bundle_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(denoise, "CASES", (((64, 48), (96, 72)),))
    assert bench(["denoise", str(bundle_path), "--data", str(photo_folder), "--rounds", "1"]) == 0
    output = capsys.readouterr().out
    assert re.search(r"tiny 64x48 -> 96x72: estimate \d+\.\d+ ms, frame \d+\.\d ms: \d+\.\d %", output)
    table = dict(re.findall(r"\| (\S+) +\| (?:noise|compression) +\| (\d+\.\d+) ", output))
    assert {"clean", "noise:5", "camera:20", "jpeg:70"} <= table.keys()
    assert re.search(r"auto gains [+-]\d+\.\d{3} dB over 0; the worst:\n  p\d: ", output)


def test_a_model_without_a_dial_is_refused(dialless_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["denoise", str(dialless_path), "--rounds", "1"]) == 2
    assert "has no dial" in capsys.readouterr().err
