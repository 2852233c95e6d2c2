"""``diinn-train`` end to end: it learns, it resumes, it says what is wrong."""

from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from diinn.train import checkpoint, config, main

RUN = {
    "model": {"encoder": {"name": "compact", "channels": 8, "blocks": 1}, "decoder": {"depth": 2, "width": 8}},
    "data": {"patch": 16, "batch": 4, "queries": 64, "holdout": 2, "workers": 0},
    "optim": {"steps": 40, "warmup": 5, "lr": 5e-3, "ema": 0.5},
    "validate_every": 20,
}


def write(path: Path, **changes: object) -> Path:
    path.write_text(yaml.safe_dump(RUN | changes))
    return path


def fit(*args: object) -> int:
    return main.main(["fit", *map(str, args), "--no-progress"])


def test_fit_learns_and_resume_continues_the_same_run(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = write(tmp_path / "run.yaml")
    assert fit("-c", settings, "--data", photo_folder, "--out", whole) == 0
    assert "step 40" in capsys.readouterr().out
    full = checkpoint.load(whole / "last.pth")
    assert full.step == 40
    assert full.log[1]["psnr"] > full.log[0]["psnr"]
    assert checkpoint.load(whole / "best.pth").step == 40
    assert (whole / "log" / "version_0" / "metrics.csv").read_text().count("\n") >= 4

    half = {**RUN["optim"], "steps": 20}  # type: ignore[dict-item]
    assert fit("-c", write(tmp_path / "half.yaml", optim=half), "--data", photo_folder, "--out", parts) == 0
    # The cosine of the longer run differs in its first half: compare two resumed runs, not these two.
    assert fit("-c", settings, "--data", photo_folder, "--out", parts, "--resume") == 0
    resumed = checkpoint.load(parts / "last.pth")
    assert resumed.step == 40
    assert [entry["step"] for entry in resumed.log] == [20, 40]

    assert fit("-c", settings, "--data", photo_folder, "--out", whole) == 2
    assert "--resume" in capsys.readouterr().err


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path: Path, photo_folder: Path) -> None:
    settings = write(tmp_path / "run.yaml")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit("-c", settings, "--data", photo_folder, "--out", whole) == 0
    from diinn.train import task

    class Interrupted(Exception):
        pass

    class Interrupter(task.CheckpointWriter):
        state_key = "CheckpointWriter"  # what the checkpoint knows it by

        def on_train_batch_start(self, trainer, *_: object) -> None:  # type: ignore[no-untyped-def]
            if trainer.global_step == 25:
                raise Interrupted

    original = task.CheckpointWriter
    task.CheckpointWriter = Interrupter  # type: ignore[misc]
    try:
        with pytest.raises(Interrupted):
            fit("-c", settings, "--data", photo_folder, "--out", parts)
    finally:
        task.CheckpointWriter = original  # type: ignore[misc]
    assert fit("-c", settings, "--data", photo_folder, "--out", parts, "--resume") == 0
    a, b = (checkpoint.load(folder / "last.pth").model.state_dict() for folder in (whole, parts))
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=0)


def test_a_second_stage_starts_where_the_first_ended(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("-c", write(tmp_path / "a.yaml"), "--data", photo_folder, "--out", tmp_path / "a") == 0
    first = checkpoint.load(tmp_path / "a" / "last.pth")
    gentle = {"steps": 20, "lr": 1e-6, "loss": "l2", "ema": 0}
    settings = write(tmp_path / "b.yaml", optim=gentle)
    args = ("--data", photo_folder, "--out", tmp_path / "b", "--start", tmp_path / "a" / "last.pth")
    assert fit("-c", settings, *args) == 0
    second = checkpoint.load(tmp_path / "b" / "last.pth")
    assert second.log[0]["psnr"] == pytest.approx(first.log[-1]["psnr"], abs=0.05)
    other = write(tmp_path / "c.yaml", model={"encoder": {"name": "compact", "channels": 4, "blocks": 1}})
    assert fit("-c", other, *args[:2], "--out", tmp_path / "c", *args[4:]) == 2
    assert "holds another model" in capsys.readouterr().err


def test_mixed_precision_trains(tmp_path: Path, photo_folder: Path) -> None:
    settings = write(tmp_path / "run.yaml", precision="bf16-mixed")
    assert fit("-c", settings, "--data", photo_folder, "--out", tmp_path / "out") == 0
    weights = checkpoint.load(tmp_path / "out" / "last.pth").model.state_dict()
    assert all(w.dtype == torch.float32 for w in weights.values())


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"optim": {"stepps": 3}}, "unknown key 'stepps': did you mean 'steps'"),
        ({"optim": {"steps": 0}}, "optim.steps = 0"),
        ({"model": {"encoder": {"name": "rnd"}}}, "unknown model.encoder name 'rnd': did you mean 'rdn'"),
        ({"model": {"encoder": {"name": "compact", "chanels": 3}}}, "unknown key 'chanels': did you mean 'channels'"),
        ({"data": {"scales": {"uniform": [0.5, 4]}}}, "at least 1"),
        ({"data": {"scales": {"uniform": [1, float("inf")]}}}, "finite"),
        ({"data": {"scales": {}}}, "uniform"),
        ({"precision": "fp8"}, "precision"),
        ({"data": {"holdout": 8}}, "none of the 0 images"),
        ({"data": {"patch": 500}}, "short side of 500"),
    ],
)
def test_settings_that_are_wrong(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, object], word: str
) -> None:
    settings = write(tmp_path / "run.yaml", **changes)
    assert fit("-c", settings, "--data", photo_folder, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("diinn-train: ")
    assert word in error


def test_files_that_are_not_there(tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("-c", tmp_path / "none.yaml", "--data", photo_folder) == 2
    assert "cannot read the configuration" in capsys.readouterr().err
    (tmp_path / "bad.yaml").write_text("a: [b")
    assert fit("-c", tmp_path / "bad.yaml", "--data", photo_folder) == 2
    assert "is not YAML" in capsys.readouterr().err
    settings = write(tmp_path / "run.yaml")
    assert fit("-c", settings, "--data", tmp_path / "none", "--out", tmp_path / "o") == 2
    assert fit("-c", settings, "--data", photo_folder, "--out", tmp_path / "o", "--resume") == 2
    assert "nothing to resume" in capsys.readouterr().err


def test_every_shipped_configuration_is_valid() -> None:
    for path in (ROOT / "train" / "configs").glob("*.yaml"):
        assert config.read(path).optim.steps > 0
