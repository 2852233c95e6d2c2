"""The commands that print figures run and print what they claim; no time is asserted."""

import json
import re
from pathlib import Path

import cv2
import pytest
from conftest import ROOT
from diinn.benchmarks import memory, networks, speed
from diinn.benchmarks.__main__ import main as bench
from diinn.runtime import InputError


def test_speed_measures_the_same_work_three_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "CASES", (((24, 20), (48, 50)),))
    out = tmp_path / "speed.json"
    assert bench(["speed", "--network", "small", "--least", "1", "--seconds", "0", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    results = json.loads(out.read_text())
    assert [r["form"] for r in results] == ["published, PyTorch", "folded, PyTorch", "runtime"]
    for r in results:
        assert r["encode"] > 0
        assert r["decode"] > 0
        assert re.search(rf"\| +{re.escape(r['form'])} +\|", printed)


def test_bundles_are_timed_as_the_runtime_chooses(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "CAMERA", ((24, 20), (48, 40)))
    compared = ROOT / "benchmarks" / "results" / "comparison"
    rivals = [str(compared / f"{name}.diinn") for name in ("diinn", "liif", "metasr")]
    assert bench(["speed", "--least", "1", "--seconds", "0", "--bundle", "nano", *rivals]) == 0
    printed = capsys.readouterr().out
    assert re.findall(r"^\| (\w+) +\| onnxruntime .*\| +[\d.]+ \|$", printed, re.MULTILINE) == [
        "nano",
        "diinn",
        "liif",
        "metasr",
    ]


def test_the_three_forms_give_the_same_pixels() -> None:
    import numpy as np
    import torch
    from diinn.runtime import SuperResolver

    with networks.network("small") as net, SuperResolver.open(net.bundle) as resolver, torch.inference_mode():
        entries = speed.contestants(net, resolver, (21, 17), (63, 40))
        outputs = {name: decode(encode()) for name, (encode, decode) in entries.items()}
    config = net.model.config
    published = outputs["published, PyTorch"][0].permute(1, 2, 0).numpy() * config.std + config.mean
    folded = torch.cat(outputs["folded, PyTorch"]).reshape(40, 63, 3).numpy()
    np.testing.assert_allclose(folded, published, atol=1e-5)
    runtime = outputs["runtime"][0][..., ::-1]
    assert np.abs(runtime - np.clip(published * 255, 0, 255)).max() < 0.51


def test_unknown_network() -> None:
    with pytest.raises(InputError, match="no network 'x'"), networks.network("x"):
        pass


def test_memory_counts_what_the_output_needs(bundle_path: Path) -> None:
    found = memory.in_own_process(str(bundle_path), (48, 48), (256, 256), "float32")
    assert found["frames"] == 48 * 48 * 3 + 256 * 256 * 12
    assert found["peak"] > found["loaded"] > 0


def test_picture(tmp_path: Path) -> None:
    assert bench(["picture", "--out", str(tmp_path / "p.png")]) == 0
    image = cv2.imread(str(tmp_path / "p.png"))
    assert image.shape[:2] == (2 * (84 * 4 + 26), 4 * (96 * 4 + 6))
