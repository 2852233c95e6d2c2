"""``diinn-train fit``: one training run from its settings to the files it leaves."""

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diinn.runtime.errors import InputError
from diinn.train import checkpoint, curve
from diinn.train.config import RunConfig, plain
from diinn.train.model import ModelConfig, SuperResolutionModel
from diinn.train.photographs import training_and_holdout
from diinn.train.task import CheckpointWriter, SignalStop, TrainingLoader, TrainingTask
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

log = logging.getLogger(__name__)
# Settings a resumed run may change: how long and how it runs, not what it computes
MAY_CHANGE = {"optim.steps", "data.workers", "compile", "log_every"}


@dataclass(frozen=True)
class Run:
    """A run.

    data: folders of training images; out: where everything the run writes goes
    validation: folders of hold-out images, none to hold out some of ``data``
    start: a checkpoint to begin from
    resume: go on from ``out/resume.ckpt``, which is written at each validation and on a signal
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
    if torch.cuda.is_available() and here > torch.cuda.device_count():
        raise InputError(f"{here} processes on {torch.cuda.device_count()} GPUs: start one process a GPU")
    if config.data.batch % everywhere:
        raise InputError(
            f"data.batch = {config.data.batch} is not a multiple of the {everywhere} processes: make it one"
        )
    L.seed_everything(config.seed, verbose=False)
    data = config.data
    photographs = training_and_holdout(
        run.data, run.validation, data.holdout, largest=data.largest, smallest=data.patch, progress=run.progress
    )
    task = TrainingTask(config, *photographs)
    if run.start is not None:
        task.model.load_state_dict(_weights(run.start, config.model))
    resume = out / "resume.ckpt" if run.resume else None
    if resume is not None:
        _check_same_run(resume, config)
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
        log_every_n_steps=config.logged_every,
        enable_progress_bar=run.progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,  # the stream of batches goes on where the last epoch ended
    )
    if trainer.is_global_zero:
        count = sum(p.numel() for p in task.model.parameters())
        begun = checkpoint.read(resume)["global_step"] if resume else 0
        print(
            f"{out}: {count:,} parameters, {len(task.photographs)} images to train on, {len(task.holdout)} held out, "
            f"{trainer.strategy.root_device}, steps {begun} to {config.optim.steps}",
            flush=True,
        )
    try:
        trainer.fit(task, ckpt_path=resume, weights_only=True)
    except InputError as error:  # from a worker that reads images it comes with a traceback in its message
        *_, last = str(error).strip().splitlines()
        raise InputError(last.rpartition("Error: ")[2]) from None
    finally:
        loader = trainer.train_dataloader
        if isinstance(loader, TrainingLoader):
            loader.stop()
    if trainer.is_global_zero:
        curve.draw(out)
    return out / "last.pth"


def _weights(start: Path, wanted: ModelConfig) -> dict[str, Tensor]:
    """The weights of checkpoint ``start`` for a model as ``wanted``.

    It may have a dial where ``start`` has none: the planes of strength then begin with weights of zero.
    """
    first = checkpoint.load(start).model
    if first.config not in (wanted, replace(wanted, dial=None)):
        raise InputError(f"{start} holds another model than the configuration describes: {first.config}")
    state = dict(first.state_dict())
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in SuperResolutionModel(wanted).state_dict().items()}
    for name, value in state.items():
        if value.shape != shapes[name]:  # the first convolution
            more = shapes[name][1] - value.shape[1]
            state[name] = torch.cat((value, value.new_zeros(len(value), more, *value.shape[2:])), 1)
    return state


def _check_same_run(resume: Path, config: RunConfig) -> None:
    """InputError unless ``resume`` is of a run with these settings; the number of steps may differ."""
    saved = checkpoint.read(resume).get("callbacks", {}).get("CheckpointWriter", {}).get("run")
    if saved is None:
        raise InputError(f"{resume} was not written by diinn-train fit: leave out --resume, or give another --out")
    was, now = _flat(saved), _flat(plain(config))
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key) and key not in MAY_CHANGE:
            raise InputError(
                f"{resume} is of a run with {key} = {was.get(key)}, the configuration says {now.get(key)}: "
                "resume with the settings it was begun with, or choose another --out"
            )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _callbacks(run: Run) -> list[Callback]:
    callbacks: list[Callback] = [CheckpointWriter(run.out, run.config)]
    if run.config.optim.ema:
        callbacks.append(EMAWeightAveraging(decay=run.config.optim.ema))
    callbacks.append(ModelCheckpoint(dirpath=run.out, filename="resume", enable_version_counter=False))
    if run.progress:
        callbacks.append(RichProgressBar())
    callbacks.append(SignalStop(run.out / "resume.ckpt", run.config.logged_every))
    return callbacks
