"""``diinn-train`` end to end: it learns, it resumes, it says what is wrong."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml
from conftest import ROOT
from diinn.runtime.errors import CheckpointError
from diinn.runtime.util import memory
from diinn.train import checkpoint, config, curve, main, task
from diinn.train import fit as fitting
from diinn.train.photographs import Photographs

RUN = {
    "model": {
        "encoder": {"name": "compact", "channels": 8, "blocks": 1},
        "decoder": {"name": "diinn", "depth": 2, "width": 8},
    },
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
    output = capsys.readouterr().out
    assert "6 images to train on, 2 held out, cpu, steps 0 to 40" in output
    assert "step 40" in output
    with pytest.raises(
        CheckpointError, match=r"resume.ckpt is what diinn-train --resume goes on from: give the last.pth"
    ):
        checkpoint.load(whole / "resume.ckpt")
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


COMMAND = (sys.executable, "-m", "diinn.train.main", "fit", "--no-progress")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *COMMAND[2:])


def stop_at_step(number: int, wanted: signal.Signals, command: Sequence[str], out: Path) -> tuple[int, str]:
    """Run ``command`` in a process group of its own and signal the whole group, as a terminal does, once it has logged
    ``number`` steps; its exit code and what it printed."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    log = out / "log" / "version_0" / "metrics.csv"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) > number):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, wanted)
    error = process.communicate(timeout=60)[1]
    return process.returncode, error


def assert_same_run(one: Path, other: Path) -> None:
    a, b = (checkpoint.load(folder / "last.pth") for folder in (one, other))
    assert [e["step"] for e in a.log] == [e["step"] for e in b.log]
    assert [e["psnr"] for e in a.log] == pytest.approx([e["psnr"] for e in b.log], abs=1e-3)
    for name, value in a.model.state_dict().items():
        torch.testing.assert_close(value, b.model.state_dict()[name], atol=1e-5, rtol=0)
    losses = [curve.read(folder)["loss"] for folder in (one, other)]
    assert losses[0].keys() == losses[1].keys()
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


# Every step is logged; steps are slow enough (patches of 40) to be stopped between two validations.
SLOW = {"data": {**RUN["data"], "patch": 40, "queries": 4000, "workers": 1}, "log_every": 1}  # type: ignore[dict-item]


@pytest.mark.parametrize("wanted", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_first_and_the_run_goes_on_to_the_same_weights(
    tmp_path: Path, photo_folder: Path, wanted: signal.Signals
) -> None:
    settings = write(tmp_path / "run.yaml", **SLOW)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert fit("-c", settings, "--data", photo_folder, "--out", whole) == 0
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    args = ("-c", str(settings), "--data", str(photo_folder), "--out", str(parts))
    code, error = stop_at_step(5, wanted, (*COMMAND, *args), parts)
    assert re.fullmatch(rf"diinn-train: stopped by {wanted.name} at step \d+: add --resume to go on\n", error), error
    assert code == 128 + wanted
    reached = torch.load(parts / "resume.ckpt", weights_only=True)["global_step"]
    assert 5 <= reached < 40
    assert reached != 20, "stopped at a validation: this run proves nothing"
    assert fit("-c", settings, "--data", photo_folder, "--out", parts, "--resume") == 0
    assert_same_run(whole, parts)
    assert cv2.imread(str(parts / "curve.png")) is not None


def test_a_signal_during_validation_waits_for_its_end(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = write(tmp_path / "run.yaml", log_every=1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit("-c", settings, "--data", photo_folder, "--out", whole) == 0
    validate, calls = task.TrainingTask.validation_step, []

    def interrupted(self: task.TrainingTask, case: tuple[torch.Tensor, float], number: int) -> None:
        calls.append(number)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        validate(self, case, number)

    monkeypatch.setattr(task.TrainingTask, "validation_step", interrupted)
    assert fit("-c", settings, "--data", photo_folder, "--out", parts) == 128 + signal.SIGTERM
    assert "at step 21" in capsys.readouterr().err
    assert [e["step"] for e in checkpoint.load(parts / "last.pth").log] == [20]
    assert fit("-c", settings, "--data", photo_folder, "--out", parts, "--resume") == 0
    assert_same_run(whole, parts)


def test_resuming_from_a_validation_gives_the_same_curve(tmp_path: Path, photo_folder: Path) -> None:
    settings = write(tmp_path / "run.yaml", log_every=1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert fit("-c", settings, "--data", photo_folder, "--out", whole) == 0
    halfway = {**RUN["optim"], "halve_every": 10}  # type: ignore[dict-item]
    for steps, resume in ((20, ()), (40, ("--resume",))):
        part = write(tmp_path / "part.yaml", log_every=1, optim={**halfway, "steps": steps})
        assert fit("-c", part, "--data", photo_folder, "--out", parts, *resume) == 0
    unbroken = write(tmp_path / "unbroken.yaml", log_every=1, optim={**halfway, "steps": 40})
    assert fit("-c", unbroken, "--data", photo_folder, "--out", tmp_path / "unbroken") == 0
    assert_same_run(tmp_path / "unbroken", parts)


def test_resume_with_other_settings_is_refused(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    short = {"optim": {**RUN["optim"], "steps": 2}, "validate_every": 2}  # type: ignore[dict-item]
    args = ("--data", photo_folder, "--out", out)
    assert fit("-c", write(tmp_path / "run.yaml", **short), *args) == 0
    wider = {"model": {"decoder": {"name": "diinn", "depth": 2, "width": 9}}}
    for changes, word in (
        ({"seed": 5}, "a run with seed = 0, the configuration says 5"),
        (wider, "model.decoder.width = 8, the configuration says 9"),
    ):
        assert fit("-c", write(tmp_path / "other.yaml", **(short | changes)), *args, "--resume") == 2
        assert word in capsys.readouterr().err
    shutil.copy(out / "best.pth", out / "resume.ckpt")
    assert fit("-c", tmp_path / "run.yaml", *args, "--resume") == 2
    assert "was not written by diinn-train fit" in capsys.readouterr().err


def test_weights_that_are_not_finite_are_not_saved_over_good_ones(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = write(tmp_path / "run.yaml")

    def broken(self: task.TrainingTask, *_: object) -> None:
        if self.global_step == 40:
            self.model.decoder.get_submodule("last").bias.data.fill_(float("nan"))

    monkeypatch.setattr(task.TrainingTask, "on_validation_epoch_start", broken, raising=False)
    assert fit("-c", settings, "--data", photo_folder, "--out", tmp_path / "out") == 1
    assert "the weights are not finite at step 40" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "out" / "last.pth").step == 20
    assert torch.load(tmp_path / "out" / "resume.ckpt", weights_only=True)["global_step"] == 20


def test_two_processes_train_as_one(tmp_path: Path, photo_folder: Path) -> None:
    settings = write(tmp_path / "run.yaml", optim={**RUN["optim"], "steps": 6}, validate_every=3, log_every=1)  # type: ignore[dict-item]
    assert fit("-c", settings, "--data", photo_folder, "--out", tmp_path / "one") == 0
    args = ("-c", str(settings), "--data", str(photo_folder), "--out", str(tmp_path / "two"))
    done = subprocess.run(
        [sys.executable, *TORCHRUN, *args],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    one, two = (curve.read(tmp_path / name) for name in ("one", "two"))
    assert len(one["loss"]) == 6
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert one["psnr"] == pytest.approx(two["psnr"], abs=0.01)


def test_a_signal_stops_two_processes_together(tmp_path: Path, photo_folder: Path) -> None:
    settings, out = write(tmp_path / "run.yaml", **SLOW), tmp_path / "out"
    args = ("-c", str(settings), "--data", str(photo_folder), "--out", str(out))
    _, error = stop_at_step(4, signal.SIGTERM, (sys.executable, *TORCHRUN, *args), out)
    assert error.count("stopped by SIGTERM at step") == 2, error
    reached = torch.load(out / "resume.ckpt", weights_only=True)["global_step"]
    assert 4 <= reached < 40


def test_a_batch_that_processes_cannot_share(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert fit("-c", write(tmp_path / "run.yaml"), "--data", photo_folder, "--out", tmp_path / "out") == 2
    assert "data.batch = 4 is not a multiple of the 3 processes" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_names_step_batch_and_images(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wild = {"steps": 40, "warmup": 0, "lr": 1e30, "clip": 0, "ema": 0}
    assert fit("-c", write(tmp_path / "run.yaml", optim=wild), "--data", photo_folder, "--out", tmp_path / "o") == 1
    error = capsys.readouterr().err
    step = re.search(r"the loss is \S+ at step (\d+), batch \1 of seed 0 \((p\d\.png(, )?)+\): lower optim.lr", error)
    assert step, error
    assert not (tmp_path / "o" / "resume.ckpt").exists()


def test_a_failed_run_leaves_no_worker_to_wait_for(tmp_path: Path, photo_folder: Path) -> None:
    wild = {"steps": 40, "warmup": 0, "lr": 1e30, "clip": 0, "ema": 0}
    settings = write(tmp_path / "run.yaml", optim=wild, data={**RUN["data"], "workers": 2})  # type: ignore[dict-item]
    args = ("-c", str(settings), "--data", str(photo_folder), "--out", str(tmp_path / "out"))
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "the loss is" in done.stderr


def test_hold_out_images_of_their_own(
    tmp_path: Path, photo_folder: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = write(tmp_path / "run.yaml", data={**RUN["data"], "holdout": 1}, optim={"steps": 2}, validate_every=2)  # type: ignore[dict-item]
    shutil.copytree(photo_folder, tmp_path / "photos")
    held = tmp_path / "photos" / "held"
    held.mkdir()
    for name in ("p0.png", "p1.png"):
        shutil.move(tmp_path / "photos" / name, held)
    args = ("-c", settings, "--data", tmp_path / "photos", held, "--out", tmp_path / "out", "--val")
    assert fit(*args, held) == 0
    assert "2 hold-out images are also in --data: not trained on" in caplog.text
    assert checkpoint.load(tmp_path / "out" / "last.pth").log[0]["step"] == 2
    assert fit(*args[:4], "--out", tmp_path / "none", "--val", tmp_path / "photos") == 2
    assert "0 images to train on, 8 to hold out" in capsys.readouterr().err


@pytest.mark.parametrize("decoder", [{"name": "liif", "depth": 2, "width": 8}, {"name": "metasr", "width": 8}])
def test_rivals_train_by_the_papers_recipe(tmp_path: Path, photo_folder: Path, decoder: dict[str, object]) -> None:
    papers = {"patch": 12, "batch": 2, "queries": None, "scales": {"every": [2, 3, 4]}, "holdout": 2, "workers": 0}
    optim = {"steps": 20, "lr": 3e-3, "warmup": 0, "halve_every": 8, "clip": 0, "ema": 0}
    model = {"encoder": RUN["model"]["encoder"], "decoder": decoder}  # type: ignore[index]
    settings = write(tmp_path / "run.yaml", model=model, data=papers, optim=optim, validate_every=10)
    assert fit("-c", settings, "--data", photo_folder, "--out", tmp_path / "out") == 0
    done = checkpoint.load(tmp_path / "out" / "last.pth")
    assert done.log[1]["psnr"] > done.log[0]["psnr"]
    assert done.scales == (2, 4)
    state = torch.load(tmp_path / "out" / "resume.ckpt", weights_only=True)
    assert state["lr_schedulers"][0]["_last_lr"] == pytest.approx([3e-3 / 4])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch within itself
def test_a_compiled_network_trains_the_same(tmp_path: Path, photo_folder: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    short = {**RUN["optim"], "steps": 4}  # type: ignore[dict-item]
    losses = []
    for compiled in (False, True):
        settings = write(tmp_path / "run.yaml", optim=short, validate_every=4, compile=compiled, log_every=1)
        assert fit("-c", settings, "--data", photo_folder, "--out", tmp_path / str(compiled)) == 0
        losses.append(curve.read(tmp_path / str(compiled))["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


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
        ({"optim": {"stepps": 3}}, "unknown key in optim 'stepps': did you mean 'steps'"),
        ({"optim": {"steps": 0}}, "optim.steps = 0"),
        ({"model": {"encoder": {"name": "rnd"}}}, "unknown model.encoder name 'rnd': did you mean 'rdn'"),
        (
            {"model": {"encoder": {"name": "compact", "chanels": 3}}},
            "model.encoder.compact 'chanels': did you mean 'chan",
        ),
        ({"data": {"scales": {"uniform": [0.5, 4]}}}, "at least 1"),
        ({"data": {"scales": {"uniform": [1, float("inf")]}}}, "finite"),
        ({"data": {"scales": {}}}, "uniform"),
        ({"data": {"degrade": {"jpg": [1, 2]}}}, "unknown key in data.degrade 'jpg': did you mean 'jpeg'"),
        ({"data": {"degrade": {"blur": [2, 1]}}}, "blur is a range"),
        ({"data": {"degrade": {}}}, "data.degrade and model.dial belong together"),
        ({"model": {"dial": {"noise": 0}}}, "model.dial.noise = 0"),
        ({"data": {"queries": 0}}, "data.queries"),
        ({"model": {"decoder": {"width": 8}}}, "model.decoder has no name"),
        ({"model": {"decoder": {"name": "lif"}}}, "unknown model.decoder name 'lif': did you mean 'liif'"),
        ({"model": {"decoder": {"name": "diinn", "modulation": "zs"}}}, "modulation 'zs': choose one of m, mz, sz"),
        ({"precision": "fp8"}, "precision"),
        ({"data": {"holdout": 8}}, "0 images to train on, 8 to hold out"),
        ({"optim": {"steps": 50}}, "optim.steps = 50 is not a multiple of validate_every = 20"),
        ({"seed": -1}, "seed = -1"),
        ({"seed": 2**32}, "seed = 4294967296"),
        ({"model": {"std": float("inf")}}, "model.std"),
        ({"data": {**RUN["data"], "patch": 500}}, "short side of 500"),  # type: ignore[dict-item]
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
    from diinn.train import estimation

    for path in (ROOT / "train" / "configs").glob("*.yaml"):
        if path.stem == "estimator":
            assert estimation.read(path).steps > 0
        else:
            assert config.read(path).optim.steps > 0


def test_a_configuration_extends_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "base.yaml")
    (tmp_path / "over.yaml").write_text("extends: base.yaml\nseed: 4\noptim: {lr: 0.5}\nmodel: {decoder: {width: 4}}\n")
    over = config.read(tmp_path / "over.yaml")
    assert (over.seed, over.optim.lr, over.optim.steps) == (4, 0.5, 40)
    assert (over.model.decoder.name, over.model.decoder.width) == ("diinn", 4)
    (tmp_path / "paper.yaml").write_text("extends: over.yaml\ndata: {scales: {every: [2, 3]}}\n")
    (tmp_path / "small.yaml").write_text("extends: paper.yaml\ndata: {scales: {uniform: [1, 3]}}\n")
    assert config.read(tmp_path / "small.yaml").data.scales.range == (1, 3)  # of scales there is one kind at a time
    (tmp_path / "rival.yaml").write_text("extends: over.yaml\nmodel: {decoder: {name: metasr}}\n")
    assert config.read(tmp_path / "rival.yaml").model.decoder.width == 256  # another kind: nothing is inherited
    for text, word in (
        ("extends: loop.yaml", "extends itself"),
        ("extends: none.yaml", "none.yaml' that "),
        ("", "holds no settings"),
        ("extends: base.yaml\noptim: {lrr: 1}", "unknown key in optim 'lrr': did you mean 'lr'"),
    ):
        (tmp_path / "loop.yaml").write_text(text)
        assert fit("-c", tmp_path / "loop.yaml", "--data", tmp_path) == 2
        assert word in capsys.readouterr().err


def test_the_papers_configurations_differ_in_the_decoder_alone() -> None:
    folder = ROOT / "train" / "configs"
    papers = config.plain(config.read(folder / "paper.yaml"))
    decoders = [papers["model"].pop("decoder")]
    for name in ("liif", "metasr", *(f"paper-{letter}" for letter in "abcde")):
        other = config.plain(config.read(folder / f"{name}.yaml"))
        decoders.append(other["model"].pop("decoder"))
        assert other == papers
    assert len({str(d) for d in decoders}) == 8
    assert all(d["width"] == 256 for d in decoders)
    assert papers["optim"]["steps"] == 1000 * 800 / papers["data"]["batch"]
    assert papers["optim"]["halve_every"] == 200 * 800 / papers["data"]["batch"]


def test_an_image_that_vanishes_while_a_worker_reads(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = Path(shutil.copytree(photo_folder, tmp_path / "photos"))
    read = fitting.training_and_holdout

    def vanish(*args: Any, **options: Any) -> tuple[Photographs, Photographs]:
        found = read(*args, **options)
        for path in found[0].files:
            path.unlink()
        return found

    monkeypatch.setattr(fitting, "training_and_holdout", vanish)
    monkeypatch.setattr(memory, "available", lambda: 1)  # nothing is kept
    settings = write(tmp_path / "run.yaml", data={**RUN["data"], "workers": 1})  # type: ignore[dict-item]
    assert fit("-c", settings, "--data", photos, "--out", tmp_path / "out") == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("diinn-train: ")]
    assert len(error) == 1
    assert re.match(r"diinn-train: no file '.*p\d\.png': check the path", error[0])


DIALLED = {
    **RUN,
    "model": {**RUN["model"], "dial": {"noise": 20, "compression": 50}},  # type: ignore[dict-item]
    "data": {**RUN["data"], "degrade": {"clean": 0.3}, "scales": {"uniform": [1, 3]}},  # type: ignore[dict-item]
}


def test_a_dial_is_grown_onto_a_checkpoint_and_what_is_kept_is_good_on_degraded_frames_too(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("-c", write(tmp_path / "plain.yaml"), "--data", photo_folder, "--out", tmp_path / "plain") == 0
    start = tmp_path / "plain" / "last.pth"
    settings = tmp_path / "dial.yaml"
    settings.write_text(yaml.safe_dump(DIALLED))
    grown = fitting._weights(start, config.read(settings).model)
    first = checkpoint.load(start).model.state_dict()["encoder.head.weight"]
    assert (grown["encoder.head.weight"][:, :3] == first).all()
    assert (grown["encoder.head.weight"][:, 3:] == 0).all()
    assert fit("-c", settings, "--data", photo_folder, "--out", tmp_path / "out", "--start", start) == 0
    last = checkpoint.load(tmp_path / "out" / "last.pth")
    assert last.model.config.dial is not None
    assert last.model.state_dict()["encoder.head.weight"][:, 3:].abs().max() > 0
    entry = last.log[-1]
    degraded = [value for key, value in entry.items() if key.startswith(("psnr_noise", "psnr_camera", "psnr_jpeg"))]
    assert len(degraded) == len(task.DEGRADED) * len(task.DEGRADED_SCALES)
    assert entry["psnr_degraded"] == pytest.approx(sum(degraded) / len(degraded), abs=1e-3)
    assert entry["psnr"] == pytest.approx((entry["psnr_clean"] + entry["psnr_degraded"]) / 2, abs=1e-3)
    best = checkpoint.load(tmp_path / "out" / "best.pth")
    assert best.log[-1]["psnr"] == max(e["psnr"] for e in last.log)
    logged = (tmp_path / "out" / "log" / "version_0" / "metrics.csv").read_text()
    assert {"psnr_clean", "psnr_degraded", "psnr_camera8_x4", "psnr"} <= {*logged.splitlines()[0].split(",")}
    capsys.readouterr()
    dialled, plain = tmp_path / "out" / "last.pth", tmp_path / "plain.yaml"  # a dial is not lost without a word
    assert fit("-c", plain, "--data", photo_folder, "--out", tmp_path / "y", "--start", dialled) == 2
    assert "holds another model" in capsys.readouterr().err


def test_an_estimator_learns_and_says_what_is_wrong(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from diinn.train import estimator

    settings = tmp_path / "estimator.yaml"
    short = {"steps": 20, "validate_every": 10, "batch": 4, "holdout": 2, "workers": 0}
    settings.write_text(yaml.safe_dump(short))
    common = ["estimator", "--data", str(photo_folder), "--no-progress"]
    assert main.main([*common, "-c", str(settings), "--out", str(tmp_path / "out")]) == 0
    output = capsys.readouterr().out
    assert "step 20" in output
    made = tmp_path / "out" / "estimator.pth"
    found = estimator.load(made)
    patches = torch.rand(1, 5, 3, 32, 32) * 255
    assert found.estimate(patches).shape == (1, 2)
    assert main.main([*common, "-c", str(settings), "--out", str(tmp_path / "on"), "--start", str(made)]) == 0
    settings.write_text(yaml.safe_dump(short | {"dial": {"noise": 9}}))
    assert main.main([*common, "-c", str(settings), "--out", str(tmp_path / "x"), "--start", str(made)]) == 2
    assert "make them the same" in capsys.readouterr().err
    settings.write_text(yaml.safe_dump(short | {"stepps": 1}))
    assert main.main([*common, "-c", str(settings), "--out", str(tmp_path / "x")]) == 2
    assert "unknown key 'stepps': did you mean 'steps'" in capsys.readouterr().err
    checkpoint.write(tmp_path / "other.pth", {"format": "x"})
    with pytest.raises(CheckpointError, match="is no estimator of version 1"):
        estimator.load(tmp_path / "other.pth")
