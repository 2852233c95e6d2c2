"""Decoders in folded form: what depends on the LR pixel alone is computed once per LR pixel.

A decoder turns features into *maps* at LR size (``fold``, part of the encoder graph) and, per query,
the gathered rows of these maps and the query's coordinates into RGB (``forward``, the decoder graph).
"""

from abc import ABC, abstractmethod
from typing import Literal, cast

import torch
import torch.nn.functional as F
from diinn.runtime.grid import QUERY
from diinn.train.encoders import STRICT
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn


class Decoder(nn.Module, ABC):
    """Interface of every decoder.

    map_channels: channels of each map the encoder graph hands over
    query: names of the columns of a query, in order
    fold_radius: LR pixels around a feature that its map row reads
    """

    map_channels: tuple[int, ...]
    query: tuple[str, ...]
    fold_radius: int

    @abstractmethod
    def fold(self, features: Tensor) -> Tensor:
        """Features [B, C, H, W] to all maps side by side [B, sum(map_channels), H, W]."""

    @abstractmethod
    def forward(self, rows: tuple[Tensor, ...], query: Tensor) -> Tensor:
        """Gathered map rows ([Q, map_channels[i]] each) and query [Q, len(query)] to RGB [Q, 3]."""


class DiinnDecoder(Decoder):
    """DIINN, modulation input [s z] without positional initialisation (paper, equations 2-5, variant f).

    ``z`` is the 3×3 unfold of the features. It enters each modulation layer linearly, so with
    ``w_i [s; z] = A_i s + B_i z`` all ``B_i z + b_i`` are one 3×3 convolution of the features: the
    modulation map. The parameters keep the paper's layout: ``modulation[i]`` holds ``[A_i B_i]``.
    """

    query = QUERY
    fold_radius = 1

    def __init__(self, features: int, depth: int, width: int) -> None:
        super().__init__()
        self.features, self.width = features, width
        self.map_channels = (width,) * depth
        content = 9 * features
        self.modulation = nn.ModuleList(nn.Linear(content if i == 0 else width + content, width) for i in range(depth))
        self.synthesis = nn.ModuleList(nn.Linear(3 if i == 0 else width, width) for i in range(depth))
        self.last = nn.Linear(width, 3)

    @property
    def layers(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """(modulation, synthesis) of each layer."""
        return [cast(tuple[nn.Linear, nn.Linear], p) for p in zip(self.modulation, self.synthesis, strict=True)]

    def fold(self, features: Tensor) -> Tensor:
        shape = (self.width, self.features, 3, 3)
        kernels = [modulation.weight[:, -9 * self.features :].reshape(shape) for modulation, _ in self.layers]
        bias = torch.cat([modulation.bias for modulation, _ in self.layers])
        return F.conv2d(features, torch.cat(kernels), bias, padding=1)

    def forward(self, rows: tuple[Tensor, ...], query: Tensor) -> Tensor:
        s = torch.relu(rows[0]) * torch.sin(self.synthesis[0](query))  # equations 2 and 3
        for (modulation, synthesis), row in zip(self.layers[1:], rows[1:], strict=True):
            m = torch.relu(torch.addmm(row, s, modulation.weight[:, : self.width].t()))  # equation 4
            s = m * torch.sin(synthesis(s))  # equation 5
        return self.last(s)  # type: ignore[no-any-return]


@dataclass(frozen=True, config=STRICT)
class DiinnConfig:
    """DIINN's decoder: ``depth`` layers (N) of ``width`` units (K); the paper's is 4 × 256."""

    name: Literal["diinn"] = "diinn"
    depth: int = Field(default=4, ge=1, le=64)
    width: int = Field(default=256, ge=1, le=4096)

    def build(self, features: int) -> Decoder:
        return DiinnDecoder(features, self.depth, self.width)


DecoderConfig = DiinnConfig  # a union over ``name`` once there are rivals
