"""The gate on what fp16 sums lose: every image counts, and NaN does not pass."""

from pathlib import Path

import numpy as np
import pytest
from diinn.benchmarks import fp16_sums
from diinn.benchmarks.__main__ import main as bench


@pytest.mark.parametrize(
    ("lost", "code", "printed"),
    [([0.001, 0.019], 0, "0.0190 dB"), ([0.001, 0.021], 1, "0.0210 dB"), ([0.001, np.nan], 1, "nan dB")],
)
def test_the_worst_image_decides(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bundle_path: Path,
    photo_folder: Path,
    lost: list[float],
    code: int,
    printed: str,
) -> None:
    rows = np.array([(30.0, 0.0, value) for value in lost])
    monkeypatch.setattr(fp16_sums, "loss", lambda *_: 1e-4)
    monkeypatch.setattr(fp16_sums, "losses", lambda *_: rows)
    assert bench(["fp16_sums", str(bundle_path), "--data", str(photo_folder)]) == code
    assert f"fp16 sums lose at most {printed}" in capsys.readouterr().out


def test_fp16_sums_are_measured(bundle_path: Path, photo_folder: Path) -> None:
    bundle = fp16_sums.bundles.load(bundle_path)
    found = fp16_sums.losses(bundle, fp16_sums.pairs(bundle), photo_folder, 2.0)
    assert found.shape == (8, 3)
    assert np.isfinite(found).all()
