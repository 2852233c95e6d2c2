"""``diinn-train estimator``: trains the estimator of frames' noise and compression, on degraded photographs."""

import json
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch
from diinn.runtime.errors import InputError
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.noise import strength
from diinn.train import config, degradation, estimator
from diinn.train.config import DegradeConfig
from diinn.train.encoders import STRICT
from diinn.train.model import DialConfig
from diinn.train.photographs import Photographs, training_and_holdout
from lightning.pytorch.callbacks import RichProgressBar
from pydantic import Field
from pydantic.dataclasses import dataclass as checked
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

FRAME = (144, 192)  # largest height and width of a training frame
PATCHES = 24  # of it
LEAST_REDUCTION = 1.4  # photographs are JPEG files themselves: this much removes the traces of that
MOST_REDUCTION = 4.0
BEND = 0.02  # with the absolute error alone a network that still predicts a constant learns slowly
# The degradations that the hold-out is measured under
CONDITIONS = ("clean", "noise:2", "noise:5", "noise:10", "noise:20", "camera:2", "camera:5", "camera:10", "camera:20")
COMPRESSED = ("jpeg:90", "jpeg:75", "jpeg:60")


@checked(frozen=True, config=STRICT)
class EstimatorConfig:
    """What ``diinn-train estimator -c`` reads.

    degrade: degradations of frames; dial: ranges of the estimates; batch: frames a step
    lr: of Adam, with a cosine to zero; holdout: images kept apart
    """

    steps: int = Field(ge=1)
    dial: DialConfig = Field(default_factory=lambda: DialConfig())
    degrade: DegradeConfig = Field(default_factory=lambda: DegradeConfig())
    lr: float = Field(default=1e-3, gt=0)
    batch: int = Field(default=16, ge=1)
    holdout: int = Field(default=24, ge=1)
    largest: int = Field(default=1600, ge=64)
    workers: int = Field(default=1, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**32)
    validate_every: int = Field(default=1500, ge=1)


@dataclass(frozen=True)
class Run:
    """A run.

    data: folders of photographs; out: where the run is kept
    validation: folders of hold-out images, none to hold out some of ``data``
    start: an estimator to begin from
    """

    config: EstimatorConfig
    data: Sequence[Path]
    out: Path
    validation: Sequence[Path] = ()
    start: Path | None = None
    progress: bool = False


class FrameStream(IterableDataset[tuple[Tensor, Tensor]]):
    """An endless stream of batches: patches [B, S, 3, 32, 32], levels of uint8 as float32, and strengths [B, 2].

    Frame j of batch k depends on the seed, k and j alone.
    """

    def __init__(self, photographs: Sequence[UInt8], options: EstimatorConfig) -> None:
        super().__init__()
        self.photographs, self.options = photographs, options

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        info = get_worker_info()
        number, step = (info.id, info.num_workers) if info else (0, 1)
        while True:
            generators = [np.random.default_rng((self.options.seed, number, j)) for j in range(self.options.batch)]
            made = [self._frame(rng) for rng in generators]
            yield torch.stack([patches for patches, _ in made]), torch.tensor([given for _, given in made])
            number += step

    def _frame(self, rng: np.random.Generator) -> tuple[Tensor, tuple[float, float]]:
        photograph = self.photographs[int(rng.integers(len(self.photographs)))]
        if rng.random() < 0.5:
            photograph = photograph.transpose(1, 0, 2)
        short = min(photograph.shape[:2]) / strength.PATCH
        reduction = float(rng.uniform(LEAST_REDUCTION, max(LEAST_REDUCTION, min(MOST_REDUCTION, short))))
        room = [int(n / reduction) for n in photograph.shape[:2]]
        height, width = (min(most, n) for most, n in zip(FRAME, room, strict=True))
        cut = [min(n, math.ceil(m * reduction)) for n, m in zip(photograph.shape[:2], (height, width), strict=True)]
        top, left = (int(rng.integers(n - m + 1)) for n, m in zip(photograph.shape[:2], cut, strict=True))
        crop = np.ascontiguousarray(
            photograph[top : top + cut[0], left : left + cut[1], :: 1 - 2 * int(rng.integers(2))]
        )
        crop = crop[:, :: 1 - 2 * int(rng.integers(2))].copy()
        hr = degradation.to_float(torch.from_numpy(crop)).permute(2, 0, 1)
        _, frame, truth = degradation.degrade(hr, (height, width), self.options.degrade, rng, phases=1)
        return _patches(frame, PATCHES, rng), truth


def _patches(frame: Tensor, count: int | None = None, rng: np.random.Generator | None = None) -> Tensor:
    """Patches [S, 3, 32, 32] of a frame [3, H, W] in [0, 1], as the runtime takes them.

    count: how many, some of them twice where there are fewer
    """
    found = strength.patches((frame * 255).round().permute(1, 2, 0).numpy(), count or strength.MOST_PATCHES)
    if count is not None and rng is not None:
        found = found[rng.permutation(np.resize(np.arange(len(found)), count))]
    return torch.from_numpy(np.ascontiguousarray(found)).permute(0, 3, 1, 2)


class EstimatorTask(L.LightningModule):
    """The absolute error of both numbers, each in units of its range, and its square below ``BEND``."""

    def __init__(self, options: EstimatorConfig, train: Photographs, holdout: Photographs, out: Path) -> None:
        super().__init__()
        self.options, self.photographs, self.out = options, train, out
        self.estimator = estimator.Estimator(options.dial)
        self.cases = _cases(holdout)
        self.history: list[dict[str, float]] = []

    def train_dataloader(self) -> Any:
        return DataLoader(
            FrameStream(self.photographs, self.options), batch_size=None, num_workers=self.options.workers
        )

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        patches, truth = batch
        most = truth.new_tensor([self.options.dial.noise, self.options.dial.compression])
        loss = torch.nn.functional.smooth_l1_loss(self.estimator(patches) / most, truth / most, beta=BEND)
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        if self.global_step % self.options.validate_every == 0 or self.global_step == self.options.steps:
            entry = {"step": float(self.global_step), **measure(self.estimator, self.cases)}
            self.history.append(entry)
            print("  ".join(f"{key} {value:g}" for key, value in entry.items()), flush=True)
            estimator.save(self.out / "estimator.pth", self.estimator, asdict(self.options), self.history)

    def configure_optimizers(self) -> Any:
        adam = torch.optim.Adam(self.parameters(), lr=self.options.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, self.options.steps)
        return {"optimizer": adam, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


Case = tuple[str, Tensor, tuple[float, float]]  # degradation, patches [S, 3, 32, 32], true strength


def _cases(holdout: Sequence[UInt8]) -> list[Case]:
    """The hold-out's photographs halved, under every condition."""
    found = []
    for seed, image in enumerate(holdout):
        hr = degradation.to_float(torch.from_numpy(np.ascontiguousarray(image))).permute(2, 0, 1)
        lr = degradation.reduce(hr, degradation.lr_shape((hr.shape[1], hr.shape[2]), 2))
        for name in (*CONDITIONS, *COMPRESSED):
            degraded = degradation.Degradation.parse(name)
            found.append((name, _patches(degraded.of(lr, seed)), degraded.strength))
    return found


@torch.inference_mode()
def measure(network: estimator.Estimator, cases: Sequence[Case]) -> dict[str, float]:
    """Median absolute error under each condition: of the noise, grey levels, or of the compression.

    For clean frames the larger of both.
    """
    errors: dict[str, list[Tensor]] = {}
    for name, patches, truth in cases:
        found_here = network.estimate(patches[None].to(network.cosines.device))[0].cpu()
        errors.setdefault(name, []).append((found_here - torch.tensor(truth)).abs())
    found = {}
    for name, values in errors.items():
        table = torch.stack(values)
        which = int(name in COMPRESSED)
        found[name] = round(float(table[:, which].median()), 3)
        if name == "clean":
            found |= {"clean_most_noise": float(table[:, 0].max()), "clean_most_compression": float(table[:, 1].max())}
    return found


def read(path: Path) -> EstimatorConfig:
    """The settings in a YAML file."""
    return config.parse(EstimatorConfig, config.values(path), str(path))


def fit(run: Run) -> Path:
    """Train; returns the path of ``estimator.pth``. Raises InputError."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    cv2.setNumThreads(1)
    options = run.config
    L.seed_everything(options.seed, verbose=False)
    training, held = training_and_holdout(
        run.data,
        run.validation,
        options.holdout,
        largest=options.largest,
        smallest=2 * strength.PATCH,
        progress=run.progress,
    )
    run.out.mkdir(parents=True, exist_ok=True)
    task = EstimatorTask(options, training, held, run.out)
    if run.start is not None:
        first = estimator.load(run.start)
        if first.dial != options.dial:
            raise InputError(f"{run.start} estimates {first.dial}, the settings {options.dial}: make them the same")
        task.estimator.load_state_dict(first.state_dict())
    trainer = L.Trainer(
        accelerator="auto",
        devices=1,
        max_steps=options.steps,
        gradient_clip_val=1.0,
        callbacks=[RichProgressBar()] if run.progress else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=run.progress,
        enable_model_summary=False,
    )
    trainer.fit(task)
    (run.out / "log.json").write_text(json.dumps(task.history, indent=1) + "\n", encoding="utf-8")
    return run.out / "estimator.pth"
