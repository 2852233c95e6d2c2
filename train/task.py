"""The task that Lightning trains: the loss, the schedule, validation, and the checkpoints a run writes."""

import math
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diinn.runtime.errors import DiinnError
from diinn.runtime.images.arrays import UInt8
from diinn.train import checkpoint, data, degradation, protocol
from diinn.train.config import RunConfig, plain
from diinn.train.model import SuperResolutionModel
from diinn.train.photographs import Photographs
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

# Added to a patch's squared error before its logarithm: above 33 dB a patch counts as L2 has it, below it more evenly.
PSNR_FLOOR = 5e-4
VALIDATION_SCALES = (2.0, 3.0, 4.0)
# What the hold-out is measured under beside clean where training is degraded, at these scales: seeds are fixed.
DEGRADED = ("noise:5", "noise:10", "camera:4", "camera:8", "jpeg:85", "jpeg:70")
DEGRADED_SCALES = (2.0, 4.0)


Case = tuple[Tensor, float, str, int]  # a crop uint8 [H, W, 3], scale, degradation, seed


class TrainingLoader(DataLoader[data.Sample]):
    """A loader whose position is the step that training has reached, so that it has no state of its own to save."""

    _running: Any = None

    def __iter__(self) -> Any:
        self._running = super().__iter__()
        return self._running

    def stop(self) -> None:
        """End the workers.

        They ignore signals, and an exception keeps their iterator alive until the process waits for them.
        """
        if hasattr(self._running, "_shutdown_workers"):
            self._running._shutdown_workers()

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _: dict[str, Any]) -> None:
        pass


class TrainingTask(L.LightningModule):
    """The loss between predicted and true RGB at random queries; PSNR of whole hold-out crops."""

    def __init__(self, config: RunConfig, train: Photographs, holdout: Photographs) -> None:
        super().__init__()
        self.config = config
        self.model = SuperResolutionModel(config.model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            self.model.compile()
        self.photographs, self.holdout = train, holdout

    def _stream(self, first: int) -> data.PatchStream:
        config, trainer = self.config, self.trainer
        layout = self.model.decoder.layout
        return data.PatchStream(
            self.photographs, config.data, layout, config.seed, first, trainer.global_rank, trainer.world_size
        )

    def train_dataloader(self) -> TrainingLoader:
        workers = self.config.data.workers
        return TrainingLoader(
            self._stream(self.global_step),
            batch_size=None,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_signals_to_the_main_process,
            # Forked workers share the photographs; any other start copies them.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        )

    def val_dataloader(self) -> DataLoader[Case]:
        crops = [_centre(image, self.config.data.holdout_crop) for image in self.holdout]
        conditions = [("clean", s) for s in VALIDATION_SCALES]
        if self.config.data.degrade is not None:
            conditions += [(name, s) for name in DEGRADED for s in DEGRADED_SCALES]
        cases = [(crop, s, name, seed) for name, s in conditions for seed, crop in enumerate(crops)]
        return DataLoader(cases, batch_size=None)  # type: ignore[arg-type]

    def on_train_batch_start(self, *_: Any) -> None:
        # Lightning counts one more here at each resume from an epoch's end, and logs by this count.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step

    def training_step(self, batch: data.Sample, _: int) -> Tensor:
        rgb = self.model(batch.lr.contiguous(memory_format=torch.channels_last), batch.rows, batch.query)
        loss = _loss(self.config.optim.loss, rgb, batch)
        if not torch.isfinite(loss):
            step = self.global_step
            files = sorted({self.photographs.files[image].name for image, _ in self._stream(step).draw(step)})
            raise DiinnError(
                f"the loss is {loss.item()} at step {step}, batch {step} of seed {self.config.seed} "
                f"({', '.join(files)}): lower optim.lr or optim.clip, or use precision 32-true"
            )
        self.log("loss", loss, sync_dist=True)
        return loss

    def validation_step(self, case: Case, _: int) -> None:
        image, scale, name, seed = case
        degraded = degradation.Degradation.parse(name)
        with torch.autocast(self.device.type, enabled=False):
            value = protocol.psnr(
                degradation.to_float(image).permute(2, 0, 1),
                float(scale),
                lambda lr, shape: protocol.super_resolve(self.model, lr, shape, degraded.strength),
                lambda lr: degraded.of(lr, int(seed)),
            )
        scored = {f"psnr_x{float(scale):g}" if name == "clean" else f"psnr_{name.replace(':', '')}_x{scale:g}": value}
        kind = "clean" if name == "clean" else "degraded"
        for key, found in (scored | {f"psnr_{kind}": value}).items():
            self.log(key, found, on_epoch=True, batch_size=1, sync_dist=True)

    def configure_optimizers(self) -> Any:
        optim = self.config.optim
        adam = torch.optim.Adam(self.model.parameters(), lr=optim.lr)

        def factor(step: int) -> float:
            if step < optim.warmup:
                return (step + 1) / optim.warmup
            if optim.halve_every is not None:
                return 0.5 ** (step // optim.halve_every)
            done = (step - optim.warmup) / max(1, optim.steps - optim.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

        schedule = torch.optim.lr_scheduler.LambdaLR(adam, factor)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class CheckpointWriter(Callback):
    """Writes our self-describing checkpoints, ``last.pth`` and ``best.pth``, at each validation.

    Stands before the weight averaging in the list of callbacks, so that what it sees is the average.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self.folder, self.run = folder, plain(config)
        self.history: list[dict[str, float]] = []

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, TrainingTask):
            return
        scores = {k: round(float(v), 4) for k, v in trainer.callback_metrics.items() if k.startswith("psnr")}
        means = [scores[k] for k in ("psnr_clean", "psnr_degraded") if k in scores]
        chosen_by = sum(means) / len(means)
        pl_module.log("psnr", chosen_by)
        entry = {"step": trainer.global_step, **scores, "psnr": round(chosen_by, 4)}
        if not math.isfinite(entry["psnr"]):  # the files on disk are still good
            raise DiinnError(f"the weights are not finite at step {trainer.global_step}: lower optim.lr or optim.clip")
        best = all(entry["psnr"] > earlier["psnr"] for earlier in self.history)
        self.history.append(entry)
        if not trainer.is_global_zero:
            return
        scales = pl_module.config.data.scales.range
        found = checkpoint.Checkpoint(pl_module.model, scales, trainer.global_step, self.run, self.history)
        for name in ("last.pth", "best.pth") if best else ("last.pth",):
            checkpoint.save(self.folder / name, found)
        print("  ".join(f"{k} {v:g}" for k, v in entry.items()), flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history, "run": self.run}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = state_dict["history"]


class Stopped(DiinnError):
    """A signal ended the run after its step was finished and a checkpoint written."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} at step {step}: add --resume to go on")
        self.exit_code = 128 + number


class SignalStop(Callback):
    """On SIGTERM or Ctrl-C finishes the step, writes ``resume.ckpt`` and raises Stopped, on all processes at once.

    Lightning's own handler talks to the other processes from within the signal, and stops in the middle of a
    validation, while averaged and current weights are exchanged. Stands last, when the step's average is made.
    """

    def __init__(self, path: Path, log_every: int) -> None:
        self.path, self.log_every = path, log_every
        self.received: int | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._note)  # Lightning puts back at the end what it found at the beginning

    def _note(self, number: int, _: object) -> None:
        self.received = number

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        step = trainer.global_step
        if step % self.log_every == 0:  # what Lightning would log next
            for logger in trainer.loggers:
                logger.log_metrics({"loss": float(trainer.callback_metrics["loss"])}, step - 1)
        trainer.save_checkpoint(self.path)
        raise Stopped(self.received or signal.SIGTERM, step)


def _loss(kind: str, rgb: Tensor, batch: data.Sample) -> Tensor:
    """The loss called ``kind`` in ``OptimConfig`` between ``rgb``, float [Q, 3], and the batch's."""
    if kind == "l1":
        return ((rgb - batch.rgb).abs().mean(1) * batch.weight).sum()
    squared = (rgb - batch.rgb).square().mean(1) * batch.weight
    if kind == "l2":
        return squared.sum()
    patches, _, *shape = batch.lr.shape
    patch = batch.rows.view(len(rgb), -1)[:, 0] // math.prod(shape)  # a query's rows all point into its own
    errors = squared.new_zeros(patches).index_add(0, patch, squared) * patches
    return (errors + PSNR_FLOOR).log().mean()


def _leave_signals_to_the_main_process(_: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _centre(image: UInt8, crop: int) -> Tensor:
    height, width = image.shape[:2]
    top, left = max(0, height - crop) // 2, max(0, width - crop) // 2
    return torch.from_numpy(image[top : top + crop, left : left + crop].copy())
