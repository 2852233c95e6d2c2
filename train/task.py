"""Training with Lightning: the loss, the schedule, validation, and the checkpoints a run leaves."""

import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diinn.runtime.errors import DiinnError, InputError
from diinn.train import checkpoint, data, degradation, protocol
from diinn.train.config import RunConfig, plain
from diinn.train.model import SuperResolutionModel
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

LOSSES = {"l1": torch.nn.functional.l1_loss, "l2": torch.nn.functional.mse_loss}
VALIDATION_SCALES = (2.0, 3.0, 4.0)


class TrainingTask(L.LightningModule):
    """The loss between predicted and true RGB at random queries; PSNR of whole hold-out crops."""

    def __init__(self, config: RunConfig, train: list[data.UInt8], holdout: list[data.UInt8]) -> None:
        super().__init__()
        self.config = config
        self.model = SuperResolutionModel(config.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.photographs, self.holdout = train, holdout

    def train_dataloader(self) -> DataLoader[data.Sample]:
        ranks = self.trainer.world_size
        first = self.global_step * ranks + self.trainer.global_rank
        stream = data.PatchStream(self.photographs, self.config.data, self.config.seed, first, ranks)
        return DataLoader(stream, batch_size=None, num_workers=self.config.data.workers)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, float]]:
        crop = self.config.data.holdout_crop
        cases = [(_centre(image, crop), s) for image in self.holdout for s in VALIDATION_SCALES]
        return DataLoader(cases, batch_size=None)  # type: ignore[arg-type]

    def training_step(self, batch: data.Sample, _: int) -> Tensor:
        rgb = self.model(batch.lr.contiguous(memory_format=torch.channels_last), batch.rows, batch.query)
        loss = LOSSES[self.config.optim.loss](rgb, batch.rgb)
        if not torch.isfinite(loss):
            raise DiinnError(f"the loss is {loss.item()} at step {self.global_step}: lower optim.lr or use 32-true")
        self.log("loss", loss)
        return loss

    def validation_step(self, case: tuple[Tensor, float], _: int) -> None:
        image, scale = case
        with torch.autocast(self.device.type, enabled=False):
            value = protocol.psnr(
                degradation.to_float(image).permute(2, 0, 1),
                float(scale),
                lambda lr, shape: protocol.super_resolve(self.model, lr, shape),
            )
        self.log(f"psnr_x{float(scale):g}", value, on_epoch=True, batch_size=1)
        self.log("psnr", value, on_epoch=True, batch_size=1)

    def configure_optimizers(self) -> Any:
        optim = self.config.optim
        adam = torch.optim.Adam(self.model.parameters(), lr=optim.lr)

        def factor(step: int) -> float:
            if step < optim.warmup:
                return (step + 1) / optim.warmup
            done = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        schedule = torch.optim.lr_scheduler.LambdaLR(adam, factor)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class CheckpointWriter(Callback):
    """Writes our self-describing checkpoints, ``last.pth`` and ``best.pth``, at each validation.

    Stands before the weight averaging in the list of callbacks, so that what it sees is the average.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.history: list[dict[str, float]] = []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, TrainingTask):
            return
        scores = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items() if k.startswith("psnr")}
        entry = {"step": trainer.global_step, **scores}
        best = all(entry["psnr"] > earlier["psnr"] for earlier in self.history)
        self.history.append(entry)
        if not trainer.is_global_zero:
            return
        config = pl_module.config
        found = checkpoint.Checkpoint(
            pl_module.model, config.data.scales.range, trainer.global_step, plain(config), self.history
        )
        for name in ("last.pth", "best.pth") if best else ("last.pth",):
            checkpoint.save(self.folder / name, found)
        print("  ".join(f"{k} {v:g}" for k, v in entry.items()), flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]


def fit(config: RunConfig, folder: Path, out: Path, *, start: Path | None, resume: Path | None, progress: bool) -> Path:
    """Train on the images below ``folder``; everything the run leaves is in ``out``.

    Returns the path of the last checkpoint. ``start`` is a checkpoint to begin from, ``resume`` a Lightning
    checkpoint of the same run (``out/resume.ckpt`` is written at each validation).
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    L.seed_everything(config.seed, verbose=False)
    files, held = data.split_holdout(data.find_images(folder), config.data.holdout)
    settings = config.data
    task = TrainingTask(
        config,
        data.read_photographs(files, settings.largest, settings.patch),
        data.read_photographs(held, settings.largest, settings.patch),
    )
    if start is not None:
        first = checkpoint.load(start).model
        if first.config != config.model:
            raise InputError(f"{start} holds another model than the configuration describes: {first.config}")
        task.model.load_state_dict(first.state_dict())
    if resume is not None:
        checkpoint.read(resume)  # says what is wrong with it
    out.mkdir(parents=True, exist_ok=True)
    callbacks: list[Callback] = [CheckpointWriter(out)]
    if config.optim.ema:
        callbacks.append(EMAWeightAveraging(decay=config.optim.ema))
    callbacks.append(ModelCheckpoint(dirpath=out, filename="resume", enable_version_counter=False))
    if progress:
        callbacks.append(RichProgressBar())
    trainer = L.Trainer(
        accelerator="auto",
        devices="auto" if torch.cuda.is_available() else 1,
        precision=config.precision,
        max_steps=config.optim.steps,
        limit_train_batches=config.validate_every,
        gradient_clip_val=config.optim.clip,
        callbacks=callbacks,
        logger=CSVLogger(out, name="log"),  # a folder for each start
        log_every_n_steps=min(100, config.validate_every),
        enable_progress_bar=progress,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        reload_dataloaders_every_n_epochs=1,  # the stream of batches goes on where the last epoch ended
    )
    trainer.fit(task, ckpt_path=resume, weights_only=True)
    return out / "last.pth"


def _centre(image: data.UInt8, crop: int) -> Tensor:
    height, width = image.shape[:2]
    top, left = max(0, height - crop) // 2, max(0, width - crop) // 2
    return torch.from_numpy(image[top : top + crop, left : left + crop].copy())
