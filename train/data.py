"""Photographs to training samples: random crop, random scale, LR patch, random queries."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import torch
from diinn.runtime import grid, images
from diinn.runtime.errors import InputError
from diinn.train import degradation
from diinn.train.config import DataConfig
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

log = logging.getLogger(__name__)
UInt8 = npt.NDArray[np.uint8]


def find_images(folder: Path) -> list[Path]:
    """Every image below ``folder``, sorted; InputError where there is none."""
    if not folder.is_dir():
        raise InputError(f"no folder {str(folder)!r}: give a folder of images")
    files = images.find(folder)
    if not files:
        raise InputError(f"no image in {str(folder)!r}: looked for {', '.join(sorted(images.SUFFIXES))}")
    return files


def read_rgb(path: Path) -> UInt8:
    """One image as uint8 RGB [H, W, 3]; grey and palette images become RGB, alpha is dropped."""
    return np.ascontiguousarray(images.read_bgr(path)[..., ::-1])


def read_photograph(path: Path, largest: int) -> UInt8:
    """``read_rgb``, halved (2×2 means) until its short side is below ``largest``: big photographs
    hold little texture per pixel."""
    image = read_rgb(path)
    while min(image.shape[:2]) >= largest:
        height, width = (n // 2 for n in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA).astype(np.uint8)
    return image


def read_photographs(files: Sequence[Path], largest: int, smallest: int) -> list[UInt8]:
    """All ``files`` in memory; those whose short side is below ``smallest`` are named and left out."""
    photographs = []
    for path in files:
        image = read_photograph(path, largest)
        if min(image.shape[:2]) < smallest:
            log.warning("%s is %dx%d, below %d pixels: left out", path, *image.shape[1::-1], smallest)
        else:
            photographs.append(image)
    if not photographs:
        raise InputError(f"none of the {len(files)} images has a short side of {smallest} pixels or more")
    return photographs


def split_holdout(files: Sequence[Path], count: int) -> tuple[list[Path], list[Path]]:
    """(training, hold-out) files; the hold-out is chosen by a hash of the name, so it stays put."""
    ranked = sorted(files, key=lambda p: hashlib.sha256(p.name.encode()).digest())
    held = set(ranked[:count])
    return [p for p in files if p not in held], [p for p in files if p in held]


class Sample(NamedTuple):
    """One training patch and its queries.

    lr: float32 [3, P, P]; rows: int64 [Q] into P·P; query: float32 [Q, 3]; rgb: float32 [Q, 3]
    """

    lr: Tensor
    rows: Tensor
    query: Tensor
    rgb: Tensor


@lru_cache(maxsize=4096)
def _axis(lr: int, hr: int) -> grid.Axis:
    return grid.axis(lr, hr)


def make_sample(image: UInt8, config: DataConfig, rng: np.random.Generator) -> Sample:
    """A random crop at a random scale, flipped and transposed at random (LIIF's augmentation)."""
    patch = config.patch
    limit = min(image.shape[:2]) / patch
    scale = min(config.scales.draw(rng), limit)
    size = round(patch * scale)
    top, left = (int(rng.integers(n - size + 1)) for n in image.shape[:2])
    crop = image[top : top + size, left : left + size]
    flip_rows, flip_cols, transpose = rng.integers(2, size=3).tolist()
    crop = crop[:: 1 - 2 * flip_rows, :: 1 - 2 * flip_cols]
    if transpose:
        crop = crop.transpose(1, 0, 2)
    hr = degradation.to_float(torch.from_numpy(np.ascontiguousarray(crop)))
    along = _axis(patch, size)
    picks = rng.integers(size, size=(2, config.queries))
    row, col = picks
    index = along.index[row].astype(np.int64) * patch + along.index[col]
    query = np.empty((config.queries, 3), np.float32)
    query[:, 0], query[:, 1], query[:, 2] = along.local[row], along.local[col], along.ratio**2
    lr = degradation.reduce(hr.permute(2, 0, 1), (patch, patch))
    rgb = hr.reshape(-1, 3)[torch.from_numpy(row * size + col)]
    return Sample(lr, torch.from_numpy(index), torch.from_numpy(query), rgb)


def collate(samples: Sequence[Sample]) -> Sample:
    """One batch: lr [B, 3, P, P], the queries of all samples in one row, rows into B·P·P."""
    pixels = samples[0].lr.shape[-1] ** 2
    return Sample(
        torch.stack([s.lr for s in samples]),
        torch.cat([s.rows + i * pixels for i, s in enumerate(samples)]),
        torch.cat([s.query for s in samples]),
        torch.cat([s.rgb for s in samples]),
    )


class PatchStream(IterableDataset[Sample]):
    """An endless stream of batches. Batch k depends on the seed and k alone, so that a resumed run
    sees what an unbroken one would have seen, with any number of workers."""

    def __init__(
        self, photographs: Sequence[UInt8], config: DataConfig, seed: int, first: int = 0, stride: int = 1
    ) -> None:
        super().__init__()
        self.photographs, self.config, self.seed = photographs, config, seed
        self.first, self.stride = first, stride  # of several processes each takes every stride-th batch

    def batch(self, number: int) -> Sample:
        rng = np.random.default_rng((self.seed, number))
        picks = rng.integers(len(self.photographs), size=self.config.batch)
        return collate([make_sample(self.photographs[i], self.config, rng) for i in picks])

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        start, step = (info.id, info.num_workers) if info else (0, 1)
        number = self.first + start * self.stride
        while True:
            yield self.batch(number)
            number += step * self.stride
