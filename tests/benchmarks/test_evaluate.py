"""The protocol: bicubic's published figures on the photographs, and one model through both roads."""

import json
from pathlib import Path

import numpy as np
import pytest
from diinn.benchmarks import evaluate
from diinn.train import degradation, protocol


def means(folder: Path, scales: list[float]) -> list[float]:
    scores = evaluate.evaluate(protocol.bicubic_upscaler, folder, scales)
    return [float(np.mean([s.bicubic for s in scores if s.scale == scale])) for scale in scales]


def test_bicubic_on_set5_is_the_papers(shared_data: Path) -> None:
    assert means(shared_data / "benchmark" / "Set5", [2, 3, 4]) == pytest.approx([31.809, 28.627, 26.696], abs=2e-3)


def test_lr_sizes_round_halves_to_even() -> None:
    assert degradation.lr_shape((5, 7), 2) == (2, 4)
    assert degradation.lr_shape((3, 3), 8) == (1, 1)


def test_the_shipped_model_beats_bicubic_on_every_image_of_set5(shared_data: Path) -> None:
    with evaluate.open_upscaler("small") as upscale:
        scores = evaluate.evaluate(upscale, shared_data / "benchmark" / "Set5", [2.0, 3.0, 4.0])
    assert all(s.model > s.bicubic for s in scores)
    got = [np.mean([s.model for s in scores if s.scale == scale]) for scale in (2, 3, 4)]
    assert (np.array(got) >= (34.6, 31.1, 28.9)).all(), got


def test_checkpoint_and_bundle_agree(
    checkpoint_path: Path, bundle_path: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cards = []
    for i, model in enumerate((checkpoint_path, bundle_path)):
        card = tmp_path / f"{i}.json"
        args = [str(model), "--data", str(photo_folder), "--scales", "2", "3.14", "--json", str(card), "--per-image"]
        assert evaluate.main(args) == 0
        cards.append(json.loads(card.read_text())["psnr_db"][photo_folder.name])
    printed = capsys.readouterr().out
    assert printed.startswith("Protocol: ")
    for scale in ("x2", "x3.14"):
        assert cards[0][scale]["model"] == pytest.approx(cards[1][scale]["model"], abs=0.01)
        assert cards[0][scale]["bicubic"] == cards[1][scale]["bicubic"]


def test_bad_input(bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for args, word in (
        ([bundle_path, "--data", tmp_path], "no image in"),
        ([bundle_path, "--data", tmp_path / "none"], "no folder"),
        (["nothing", "--data", tmp_path], "unknown model"),
        ([bundle_path, "--data", tmp_path, "--scales", "0.5"], "scale 0.5"),
        ([bundle_path, "--data", tmp_path, "--scales", "nan"], "scale nan"),
    ):
        assert evaluate.main([str(a) for a in args]) == 2
        assert word in capsys.readouterr().err
