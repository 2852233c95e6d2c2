"""The comparison end to end, with runs of a few steps."""

from pathlib import Path

import pytest
import torch
import yaml
from diinn.benchmarks import comparison
from diinn.benchmarks.__main__ import main as bench
from diinn.train import checkpoint
from diinn.train.decoders import DecoderConfig, DiinnConfig, MetaSrConfig
from pydantic import TypeAdapter
from torch.utils.flop_counter import FlopCounterMode

TINY = {
    "model": {"encoder": {"name": "compact", "channels": 8, "blocks": 1}, "decoder": {"name": "diinn", "width": 8}},
    "data": {"patch": 12, "batch": 2, "queries": 32, "holdout": 2, "workers": 0},
    "optim": {"steps": 4, "warmup": 1, "ema": 0},
    "validate_every": 4,
}


def test_trains_measures_and_prints(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "SCALES", (2.0, 3.14))
    monkeypatch.setattr(comparison, "VARIANTS", {("m", True): "a"})
    settings = tmp_path / "tiny.yaml"
    settings.write_text(yaml.safe_dump(TINY))
    out = tmp_path / "out"
    args = ["-c", settings, "--data", photo_folder, "--sets", photo_folder, "--out", out, "--seeds", 4, 1]
    assert bench(["comparison", *map(str, [*args, "--jobs", 2, "--seconds", 0])]) == 0
    printed = capsys.readouterr().out
    names = ["bicubic", "diinn", "liif", "metasr", "diinn-a"]
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in printed.splitlines() if line.startswith("|")]
    assert [line[0] for line in lines[2:]] == names
    assert [line[1] for line in lines[3:]] == ["2", "2", "2", "1"]
    assert "±" in lines[3][6]
    assert "±" not in lines[6][6]
    assert (out / "comparison.md").read_text().count("|") == printed.count("|")
    assert (out / "curves.png").stat().st_size > 1000
    assert sorted(p.name for p in (out / "bundles").iterdir()) == sorted(f"{n}.diinn" for n in names[1:])
    first = (out / "liif-1" / "last.pth").stat().st_mtime_ns
    assert checkpoint.load(out / "liif-1" / "last.pth").run["seed"] == 1
    assert bench(["comparison", *map(str, [*args, "--train-only"])]) == 0
    assert (out / "liif-1" / "last.pth").stat().st_mtime_ns == first


def test_a_run_that_fails_says_where(tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "wild.yaml"
    settings.write_text(yaml.safe_dump(TINY | {"optim": {"steps": 4, "lr": 1e30, "warmup": 0}}))
    args = ["-c", settings, "--data", photo_folder, "--sets", photo_folder, "--out", tmp_path / "out", "--seeds"]
    assert bench(["comparison", *map(str, [*args, 3])]) == 1
    assert "train.log" in capsys.readouterr().err
    assert bench(["comparison", *map(str, [*args, 3, 3])]) == 2
    assert "one is given twice" in capsys.readouterr().err
    args[args.index("--sets") + 1] = tmp_path / "none"
    assert bench(["comparison", *map(str, [*args, 3])]) == 2
    assert "no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "decoder",
    [
        {"name": "diinn", "depth": 3, "width": 16, "modulation": m, "init_q": q}
        for m in ("m", "mz", "sz")
        for q in (True, False)
    ]
    + [{"name": "liif", "depth": 3, "width": 16}],
)
def test_multiply_adds_are_what_torch_counts(decoder: dict[str, object]) -> None:
    config = TypeAdapter(DecoderConfig).validate_python(decoder)
    model = config.build(8)
    samples = 4 * model.layout.samples
    rows = tuple(torch.rand(samples, channels) for channels in model.map_channels)
    with FlopCounterMode(display=False) as counter:
        model(rows, torch.rand(samples, len(model.layout.columns)))
    weighted_sum = 4 * 3 * model.layout.samples if decoder["name"] == "liif" else 0  # no matrix product
    assert counter.get_total_flops() / 2 + weighted_sum == 4 * model.multiply_adds


def test_the_papers_network() -> None:
    assert DiinnConfig().build(64).multiply_adds == 3 * 256 + 6 * 256 * 256 + 3 * 256
    assert MetaSrConfig().build(64).multiply_adds == 3 * 256 + 3 * 256
