"""The protocol: bicubic's published figures on the photographs, and one model through both roads."""

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from diinn.benchmarks import evaluate, figure3, scores, tables
from diinn.benchmarks.__main__ import main as bench
from diinn.runtime import DiinnError
from diinn.train import degradation, protocol
from diinn.train.photographs import read_rgb
from torchmetrics.functional.image import structural_similarity_index_measure


def means(rows: list[scores.Row], name: str, method: str) -> np.ndarray:
    """[scales, metrics]"""
    found = [scores.mean(rows, name, scale, method) for scale in scores.scales(rows)]
    return np.array([[getattr(s, metric) for metric in protocol.METRICS] for s in found])


def test_bicubic_is_the_papers_table_1_on_set5(shared_data: Path) -> None:
    rows = scores.evaluate({}, shared_data / "benchmark" / "Set5", [2, 3, 4])
    papers = [p.score for p in tables.published() if (p.table, p.set, p.method) == (1, "Set5", "Bicubic")]
    wanted = np.array([[getattr(s, metric) for metric in protocol.METRICS] for s in papers])
    assert (np.abs(means(rows, "Set5", scores.BICUBIC) - wanted) <= (0.015, 0.0006, 0.035)).all()
    measured = [[31.809, 0.90973, 40.773], [28.627, 0.83853, 38.789], [26.696, 0.77388, 37.290]]  # of these very files
    np.testing.assert_allclose(means(rows, "Set5", scores.BICUBIC), measured, atol=2e-3)


def test_lr_sizes_round_halves_to_even() -> None:
    assert degradation.lr_shape((5, 7), 2) == (2, 4)
    assert degradation.lr_shape((3, 3), 8) == (1, 1)


def test_ssim_is_that_of_torchmetrics_over_the_valid_region(photo: np.ndarray) -> None:
    a = photo[..., ::-1].astype(np.float64) / 255
    b = cv2.GaussianBlur(a, (5, 5), 1.0)
    hr, sr = (torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1).float() for x in (a, b))
    _, each = structural_similarity_index_measure(sr[None], hr[None], data_range=1.0, return_full_image=True)
    found = protocol.score(hr, 1.0, lambda lr, shape: sr)
    assert found.ssim == pytest.approx(float(each[0, :, 5:-5, 5:-5].mean()), abs=1e-4)
    assert found.psnr == pytest.approx(-10 * np.log10(((a - b) ** 2).mean()), abs=1e-3)
    assert found.lr_psnr == pytest.approx(found.psnr)  # at scale 1 nothing is reduced


def test_lr_psnr_is_that_of_the_reductions(photo: np.ndarray) -> None:
    """Detail that vanishes in the reduction is not counted; an error that stays is, as at HR."""
    hr = degradation.to_float(torch.from_numpy(photo[..., ::-1].copy())).permute(2, 0, 1) * 0.8 + 0.1
    stripes = torch.tensor([0.05, -0.05]).repeat(hr.shape[2] // 2)
    found = protocol.score(hr, 2.0, lambda lr, shape: hr + stripes)
    assert found.psnr == pytest.approx(-20 * np.log10(0.05), abs=1e-3)
    assert found.lr_psnr > found.psnr + 20
    offset = protocol.score(hr, 2.0, lambda lr, shape: hr + 0.05)
    assert offset.lr_psnr == pytest.approx(offset.psnr, abs=1e-3)
    assert protocol.score(hr, 2.0, lambda lr, shape: hr).lr_psnr == float("inf")


def test_the_shipped_model_beats_bicubic_on_every_image(shared_data: Path) -> None:
    with scores.open_upscaler("small") as upscale:
        folders = [shared_data / "benchmark" / name for name in ("Set5", "Set14")]
        rows = scores.evaluate_sets({"small": upscale}, folders, [2.0, 3.0, 4.0])
    assert evaluate.below_bicubic(rows) == []
    assert (means(rows, "Set5", "small")[:, 0] >= (34.6, 31.1, 28.9)).all()


def test_checkpoint_and_bundle_agree_and_every_output_says_the_same(
    checkpoint_path: Path, bundle_path: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = {kind: tmp_path / f"scores.{kind}" for kind in ("csv", "markdown", "json")}
    files = [word for kind in ("csv", "markdown") for word in (f"--{kind}", str(out[kind]))]
    (tmp_path / "other").mkdir()
    model = tmp_path / "other" / "again.pth"
    model.write_bytes(checkpoint_path.read_bytes())
    args = ["--data", str(photo_folder), "--scales", "2", "3.14"]
    assert evaluate.main([str(bundle_path), str(model), *args, *files]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Protocol: ")
    tables_of = [[line for line in text.splitlines() if "|" in line] for text in (out["markdown"].read_text(), printed)]
    assert tables_of[0] == tables_of[1]
    assert len(tables_of[0]) == 2 + 2 * 3
    rows = list(csv.DictReader(out["csv"].read_text().splitlines()))
    assert len(rows) == 8 * 2 * 3
    for metric, tolerance in (("psnr", 0.01), ("ssim", 1e-3), ("lr_psnr", 0.01)):
        ours = {m: [float(r[metric]) for r in rows if r["method"] == m] for m in ("tiny", "again", "bicubic")}
        np.testing.assert_allclose(ours["tiny"], ours["again"], atol=tolerance)
    bicubic = [float(r["psnr"]) for r in rows if (r["method"], r["scale"]) == ("bicubic", "3.14")]
    assert re.search(rf"×3.14 +\| bicubic +\| +{np.mean(bicubic):.2f} ", printed)
    assert evaluate.main([str(bundle_path), *args, "--json", str(out["json"])]) == 0
    card = json.loads(out["json"].read_text())
    first = [float(r["psnr"]) for r in rows if (r["method"], r["scale"]) == ("tiny", "2")]
    assert card["scores"][photo_folder.name]["x2"]["model"]["psnr_db"] == pytest.approx(np.mean(first), abs=1e-3)
    assert f"{photo_folder.name} x2/x3.14" in card["summary"]


def test_bad_input(bundle_path: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = str(photo_folder)
    for args, word in (
        ([bundle_path, "--data", tmp_path], "no image in"),
        ([bundle_path, "--data", tmp_path / "none"], "no folder"),
        (["nothing", "--data", tmp_path], "unknown model"),
        ([bundle_path, "--data", photos, "--scales", "0.5"], "scale 0.5"),
        ([bundle_path, "--data", photos, "--scales", "nan"], "scale nan"),
        ([bundle_path, "--data", photos, photos], "called the same"),
        ([bundle_path, bundle_path, "--data", photos], "called the same"),
        ([bundle_path, "--data", photos, "--csv", tmp_path / "none" / "a.csv"], "no folder"),
        ([bundle_path, "--data", photos, "--csv", tmp_path], "it is a folder"),
        ([bundle_path, "--data", photos, "--csv", tmp_path / "a", "--markdown", tmp_path / "a"], "name one file"),
        ([bundle_path, "small", "--data", photos, "--json", tmp_path / "a.json"], "the card of one model"),
    ):
        assert evaluate.main([str(a) for a in args]) == 2
        assert word in capsys.readouterr().err


def test_tables_stand_beside_the_papers(
    bundle_path: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "Urban100"
    folder.mkdir()
    for path in sorted(photo_folder.iterdir())[:2]:
        cv2.imwrite(str(folder / path.name), cv2.resize(cv2.imread(str(path)), (192, 144)))
    assert bench(["tables", str(bundle_path), "--data", str(folder)]) == 0
    printed = capsys.readouterr().out
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert ["Urban100", "×4", "DIINN (f)"] in [line[:3] for line in lines]
    by_row = {(line[1], line[2]): line for line in lines}
    assert by_row["×2", "bicubic"][4] == "25.44"
    assert by_row["×2", "DIINN (f)"][4] == "30.29"
    assert by_row["×3.14", "DIINN (f)"][4] == "26.14"
    assert "Table 1" in printed
    assert "Table 5" in printed
    assert "Table 2" not in printed
    assert bench(["tables", str(bundle_path), "--data", str(folder), str(photo_folder)]) == 2
    assert f"no figures for {photo_folder.name}" in capsys.readouterr().err
    assert bench(["tables", str(bundle_path), "--data", str(folder), str(tmp_path / "Set5")]) == 2
    assert "no folder" in capsys.readouterr().err


def test_images_of_one_name_in_two_folders_are_two(photo: np.ndarray, tmp_path: Path) -> None:
    for folder, picture in (("a", photo), ("b", photo[::-1] // 2)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "0001.png"), picture)
    rows = scores.evaluate({}, tmp_path, [2.0])
    assert [r.image for r in rows] == ["a/0001", "b/0001"]
    assert evaluate.below_bicubic(rows) == []
    assert scores.from_csv(scores.to_csv(rows))[1].score.psnr == pytest.approx(rows[1].score.psnr, abs=1e-4)


def test_a_damaged_image_is_named_before_the_work(
    bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    assert evaluate.main([str(bundle_path), "--data", str(tmp_path)]) == 2
    assert "bad.png' is not an image" in capsys.readouterr().err


def test_the_papers_figures_are_all_there() -> None:
    found = tables.published()
    assert {t: sum(p.table == t for p in found) for t in tables.TITLES} == {1: 60, 2: 8, 3: 16, 5: 18}
    ours = {(p.set, p.scale): p.score for p in found if p.table == 1 and p.method == "DIINN"}
    again = {(p.set, p.scale): p.score for p in found if p.table == 5 and p.method == "DIINN (f)"}
    assert ours["Urban100", 4.0] == again["Urban100", 4.0]


@pytest.mark.parametrize(
    ("decoder", "name"),
    [
        ({"name": "liif"}, "LIIF"),
        ({"name": "metasr"}, "Meta-SR"),
        ({"name": "diinn", "modulation": "mz", "init_q": False}, "DIINN (d)"),
        ({"name": "diinn", "depth": 4, "width": 256}, "DIINN (f)"),  # a bundle of before there were variants
        ({"name": "diinn", "modulation": "sz", "init_q": True}, "DIINN (e)"),
    ],
)
def test_models_bear_the_papers_names(decoder: dict[str, object], name: str) -> None:
    assert tables.method({"decoder": decoder}) == name


def test_figure_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench(["figure3", "--out", str(tmp_path / "f.png")]) == 0
    assert cv2.imread(str(tmp_path / "f.png")).shape[0] > 400
    assert bench(["figure3", "--out", str(tmp_path / "f.xyz")]) == 2
    assert bench(["figure3", "--out", str(tmp_path)]) == 2
    monkeypatch.setattr(figure3, "EXAMPLES", {(2, 1): ((0.25, -0.25), (-0.5, 0.25))})
    with pytest.raises(DiinnError, match="the paper prints"):
        figure3.check()


def test_figure_4(
    bundle_path: Path, checkpoint_path: Path, photo_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [str(photo_path), "--model", str(bundle_path), str(checkpoint_path), "--out", str(tmp_path / "f.png")]
    assert bench(["figure4", *args, "--scales", "1", "2.5"]) == 0
    assert cv2.imread(str(tmp_path / "f.png")) is not None
    for more, word in (
        (["--rect", "0,0,500,500"], "not 16 pixels or more inside the 80x60"),
        (["--rect", "1,2,3"], "not four whole numbers"),
        (["--scales", "0"], "scale 0 is not"),
        (["--reduce", "nan"], "scale nan is not"),
    ):
        assert bench(["figure4", *args, *more]) == 2
        assert word in capsys.readouterr().err
    assert read_rgb(photo_path).shape == (60, 80, 3)


def test_degraded_frames_beside_what_users_would_try(
    bundle_path: Path, checkpoint_path: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, text, card = (tmp_path / name for name in ("scores.csv", "scores.md", "card.json"))
    args = [
        str(bundle_path),
        "--data",
        str(photo_folder),
        "--scales",
        "2",
        "--degrade",
        "clean",
        "--degrade",
        "noise:10",
    ]
    files = ["--csv", str(table), "--markdown", str(text), "--json", str(card)]
    assert evaluate.main([*args, "--denoise", "0", "auto", "true", *files]) == 0
    output = capsys.readouterr().out
    assert "fixed seeds" in output
    rows = scores.from_csv(table.read_text())
    methods = {scores.BICUBIC, *scores.PLAIN, "tiny", "tiny, auto", "tiny, true"}
    assert {r.method for r in rows} == methods
    assert {r.frames for r in rows} == {"clean", "noise:10"}
    assert len(rows) == 8 * 2 * len(methods)

    name = photo_folder.resolve().name
    noisy, clean = (scores.gain(rows, scores.NON_LOCAL_MEANS, scores.CUBIC, 2.0, f) for f in ("noise:10", "clean"))
    assert noisy.mean != 0  # on pictures this small it takes more than the noise away
    assert clean.mean == 0
    assert scores.gain(rows, "tiny, true", "tiny", 2.0, "clean").mean == pytest.approx(0, abs=1e-4)
    cubic = {f: scores.mean(rows, name, 2.0, scores.CUBIC, f).psnr for f in ("clean", "noise:10")}
    assert cubic["clean"] > cubic["noise:10"] + 0.3
    assert json.loads(card.read_text())["gain_over_cubic_db"].keys() == {"clean x2", "noise:10 x2"}
    again = tmp_path / "again.csv"
    assert evaluate.main([*args, "--denoise", "true", "--csv", str(again)]) == 0
    same = {r.place: r.score.psnr for r in scores.from_csv(again.read_text()) if r.method == "tiny, true"}
    assert same == {r.place: r.score.psnr for r in rows if r.method == "tiny, true"}
    assert evaluate.main([str(checkpoint_path), *args[1:]]) == 0  # is given the truth
    assert "tiny, true" in capsys.readouterr().out
    assert evaluate.main([str(checkpoint_path), *args[1:], "--denoise", "auto"]) == 2
    assert "cannot estimate a frame's noise, bundles do" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["noise", "noise:-3", "fog:1"])
def test_degradations_that_are_none(
    bundle_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(bundle_path), "--data", str(photo_folder), "--degrade", what])
    assert stop.value.code == 2
    assert f"degradation {what!r} is not understood" in capsys.readouterr().err


@pytest.mark.parametrize("after", [0.0, 0.3])
@pytest.mark.parametrize("command", ["benchmarks", "train"])
def test_ctrl_c_while_libraries_load_prints_no_trace(command: str, after: float) -> None:
    """From our first line on, which is main's too."""
    first = f"import sys; from diinn.{command}.start import main, quietly; quietly()"
    code = f"{first}; print('x', flush=True); sys.exit(main())"
    words = [sys.executable, "-c", code, *(["nano", "--data", "x"] if command == "benchmarks" else ["fit", "-c", "x"])]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "x\n"
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
