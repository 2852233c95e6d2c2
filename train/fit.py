"""``diinn-train fit``: one training run from its settings to the files it leaves."""

import importlib.util
import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import lightning as L
from diinn.runtime.errors import DiinnError, InputError
from diinn.train import checkpoint, curve
from diinn.train.config import RunConfig
from diinn.train.photographs import Photographs, find_images, split_holdout
from diinn.train.task import CheckpointWriter, TrainingTask
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException


class Stopped(DiinnError):
    """A signal ended the run after its step was finished and a checkpoint written."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}: add --resume to go on")
        self.exit_code = 128 + number


@dataclass(frozen=True)
class Run:
    """data: folders of training images; out: where everything the run leaves goes
    validation: folders of hold-out images, none to hold out some of ``data``
    start: a checkpoint to begin from; resume: go on from ``out/resume.ckpt``, which each validation writes
    """

    config: RunConfig
    data: Sequence[Path]
    out: Path
    validation: Sequence[Path] = ()
    start: Path | None = None
    resume: bool = False
    progress: bool = False


def fit(run: Run) -> Path:
    """Train; returns the path of the last checkpoint.

    Under ``torchrun`` every process takes its share of each batch. Raises InputError; Stopped on SIGTERM and SIGINT;
    DiinnError when the loss is not finite.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    config, out = run.config, run.out
    here, everywhere = (int(os.environ.get(name, 1)) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if config.data.batch % everywhere:
        raise InputError(f"data.batch = {config.data.batch} cannot be shared by {everywhere} processes: use a multiple")
    L.seed_everything(config.seed, verbose=False)
    task = TrainingTask(config, *_photographs(run))
    if run.start is not None:
        first = checkpoint.load(run.start).model
        if first.config != config.model:
            raise InputError(f"{run.start} holds another model than the configuration describes: {first.config}")
        task.model.load_state_dict(first.state_dict())
    resume = out / "resume.ckpt" if run.resume else None
    if resume is not None:
        checkpoint.read(resume)  # says what is wrong with it
    out.mkdir(parents=True, exist_ok=True)
    loggers: list[Logger] = [CSVLogger(out, name="log")]  # a folder for each start
    if importlib.util.find_spec("tensorboard") is not None:
        loggers.append(TensorBoardLogger(out, name="tensorboard"))
    trainer = L.Trainer(
        accelerator="auto",
        devices=here,
        num_nodes=everywhere // here,
        strategy="ddp" if everywhere > 1 else "auto",
        precision=config.precision,
        max_steps=config.optim.steps,
        limit_train_batches=config.validate_every,
        gradient_clip_val=config.optim.clip or None,
        callbacks=_callbacks(run),
        logger=loggers,
        log_every_n_steps=min(config.log_every, config.validate_every),
        enable_progress_bar=run.progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,  # the stream of batches goes on where the last epoch ended
    )
    with _ctrl_c_as_sigterm() as received:
        try:
            trainer.fit(task, ckpt_path=resume, weights_only=True)
        except SIGTERMException:
            raise Stopped(received[-1], trainer.global_step) from None
    if trainer.is_global_zero:
        curve.draw(out)
    return out / "last.pth"


def _photographs(run: Run) -> tuple[Photographs, Photographs]:
    """Training and hold-out images."""
    settings = run.config.data
    files = find_images(*run.data)
    if run.validation:
        held = find_images(*run.validation)
    else:
        files, held = split_holdout(files, settings.holdout)
    train, holdout = (
        Photographs(part, settings.largest, settings.patch, progress=run.progress) for part in (files, held)
    )
    return train, holdout


def _callbacks(run: Run) -> list[Callback]:
    callbacks: list[Callback] = [CheckpointWriter(run.out)]
    if run.config.optim.ema:
        callbacks.append(EMAWeightAveraging(decay=run.config.optim.ema))
    callbacks.append(ModelCheckpoint(dirpath=run.out, filename="resume", enable_version_counter=False))
    if run.progress:
        callbacks.append(RichProgressBar())
    return callbacks


@contextmanager
def _ctrl_c_as_sigterm() -> Iterator[list[int]]:
    """Lightning finishes its step on SIGTERM, but not on Ctrl-C: make the two the same; yields what came."""
    received = [int(signal.SIGTERM)]

    def handle(number: int, _: object) -> None:
        received.append(number)
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
