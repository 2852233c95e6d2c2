"""Photographs to training samples: random crop, random scale, LR patch, random queries."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from diinn.runtime.geometry import grid
from diinn.runtime.images.arrays import UInt8
from diinn.train import degradation
from diinn.train.config import DataConfig
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info


class Sample(NamedTuple):
    """Training patches and their queries; Q is the number of all queries, S = Q · samples of the layout.

    lr: float32 [B, 3, P, P], [B, 5, P, P] with the strength of degraded patches
    rows: int64 [S] into B·P·P; query: float32 [S, columns]; rgb: float32 [Q, 3]
    weight: float32 [Q], a query's share of the loss: every patch counts the same, however many queries it has
    """

    lr: Tensor
    rows: Tensor
    query: Tensor
    rgb: Tensor
    weight: Tensor


SAMPLES = 24  # rows and columns of a photograph that are sampled for its brightness
_resize = lru_cache(maxsize=4096)(grid.resize)


def make_sample(
    image: UInt8, scale: float, config: DataConfig, layout: grid.Layout, rng: np.random.Generator
) -> Sample:
    """A random crop of ``image`` (uint8 RGB [H, W, 3]), reduced by ``scale`` (paper, section 4.2).

    Flipped and transposed at random.
    """
    patch = config.patch
    short = min(image.shape[:2])
    size = round(patch * min(scale, short / patch))
    cut = round(size * min(rng.uniform(1, config.shrink), short / size)) if config.shrink > 1 else size
    top, left = (int(rng.integers(n - cut + 1)) for n in image.shape[:2])
    crop = image[top : top + cut, left : left + cut]
    flip_rows, flip_cols, transpose = rng.integers(2, size=3).tolist()
    crop = crop[:: 1 - 2 * flip_rows, :: 1 - 2 * flip_cols]
    if transpose:
        crop = crop.transpose(1, 0, 2)
    hr = degradation.to_float(torch.from_numpy(np.ascontiguousarray(crop))).permute(2, 0, 1)
    if cut > size:
        hr = degradation.reduce(hr, (size, size))
    if config.degrade is None:
        lr = degradation.reduce(hr, (patch, patch))
    else:
        sparse = image[:: max(1, image.shape[0] // SAMPLES), :: max(1, image.shape[1] // SAMPLES)]
        whole = sparse.astype(np.float32) / np.float32(255)
        hr, lr, strength = degradation.degrade(hr, (patch, patch), config.degrade, rng, whole)
        given = torch.tensor(degradation.inexact(strength, config.degrade, rng))
        lr = torch.cat((lr, given[:, None, None].expand(-1, patch, patch)))
    picks = np.arange(size * size) if config.queries is None else rng.integers(size * size, size=config.queries)
    index, query = _resize((patch, patch), (size, size), layout).arrays(picks)
    rgb = hr.flatten(1).t()[torch.from_numpy(picks)]
    rows, weight = torch.from_numpy(index.astype(np.int64)), torch.full((len(picks),), 1 / len(picks))
    return Sample(lr[None], rows, torch.from_numpy(query), rgb, weight)


def collate(samples: Sequence[Sample]) -> Sample:
    """One batch of several: rows point into all their LR patches, weights sum to one."""
    pixels = samples[0].lr.shape[-1] ** 2
    return Sample(
        torch.cat([s.lr for s in samples]),
        torch.cat([s.rows + i * pixels for i, s in enumerate(samples)]),
        torch.cat([s.query for s in samples]),
        torch.cat([s.rgb for s in samples]),
        torch.cat([s.weight for s in samples]) / len(samples),
    )


class PatchStream(IterableDataset[Sample]):
    """An endless stream of batches.

    The sample of image j of batch k depends on the seed, k and j alone, so that a resumed run gets the same as an
    unbroken one, with any number of workers and processes.

    first: the number of the first batch; rank, ranks: of several processes each takes its share of every batch
    """

    def __init__(
        self,
        photographs: Sequence[UInt8],
        config: DataConfig,
        layout: grid.Layout,
        seed: int,
        first: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        super().__init__()
        self.photographs, self.config, self.layout, self.seed = photographs, config, layout, seed
        self.first, self.rank, self.ranks = first, rank, ranks

    def draw(self, number: int) -> list[tuple[int, np.random.Generator]]:
        """This process's images of batch ``number``, each with the generator that decides the rest."""
        generators = [np.random.default_rng((self.seed, number, j)) for j in range(self.config.batch)]
        return [(int(rng.integers(len(self.photographs))), rng) for rng in generators[self.rank :: self.ranks]]

    def batch(self, number: int) -> Sample:
        return collate(
            [
                make_sample(self.photographs[image], scale, self.config, self.layout, rng)
                for image, rng in self.draw(number)
                for scale in self.config.scales.draw(rng)
            ]
        )

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        start, step = (info.id, info.num_workers) if info else (0, 1)
        number = self.first + start
        while True:
            yield self.batch(number)
            number += step
