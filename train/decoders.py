"""Decoders in folded form: what depends on the LR pixel alone is computed once per LR pixel.

A decoder turns features into *maps* at LR size (``fold``, part of the encoder graph) and, per query,
the gathered rows of these maps and the query's coordinates into RGB (``forward``, the decoder graph).
Parameters keep the layout of the published forms, which are in ``published.py``.
"""

import itertools
from abc import ABC, abstractmethod
from typing import Annotated, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F
from diinn.runtime.geometry import grid
from diinn.train.encoders import STRICT
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

UNFOLD = 9  # a 3×3 neighbourhood, channel-major as torch.nn.functional.unfold gives it


class Decoder(nn.Module, ABC):
    """Base class of the decoders.

    A subclass sets ``map_channels`` and ``layout`` and implements ``multiply_adds``, ``fold`` and ``forward``.

    Attributes:
        map_channels: Channels of each map the encoder graph hands over.
        layout: What a query consists of.
        fold_radius: LR pixels around a feature that its map row reads.
        folded: Whether what depends on the LR pixel alone is computed once per LR pixel.
    """

    folded = True
    map_channels: tuple[int, ...]
    layout: grid.Layout
    fold_radius = 1

    @property
    @abstractmethod
    def multiply_adds(self) -> int:
        """Multiply-adds of matrix products and weighted sums, per query, in folded form."""

    @abstractmethod
    def fold(self, features: Tensor) -> Tensor:
        """The maps of features: what depends on the LR pixel alone.

        Args:
            features: float32 [B, C, H, W], the encoder's output.

        Returns:
            All maps side by side, float32 [B, sum(map_channels), H, W].
        """

    @abstractmethod
    def forward(self, rows: tuple[Tensor, ...], query: Tensor) -> Tensor:
        """RGB of queries (paper, equation 1), normalised as the model's frames are.

        Args:
            rows: Gathered rows of each map, float32 [Q·samples, map_channels[i]].
            query: The layout's numbers, float32 [Q·samples, columns].

        Returns:
            float32 [Q, 3].
        """


def unfold(features: Tensor, channels: int) -> Tensor:
    """[B, C, H, W] to its zero-padded 3×3 neighbourhoods [B, 9·C, H, W], by a convolution that every engine takes."""
    picks = np.tile(np.eye(UNFOLD, dtype=np.float32), (channels, 1)).reshape(-1, 1, 3, 3)
    return F.conv2d(features, torch.from_numpy(picks).to(features), padding=1, groups=channels)


class DiinnDecoder(Decoder):
    """DIINN, equations 2-9 and the six variants of Table 5.

    ``z``, the 3×3 unfold of the features, enters each modulation layer linearly: with ``w_i [h z] = A_i h + B_i z``
    all ``B_i z + b_i`` are one 3×3 convolution of the features, whose results are the maps. Under ``m`` and ``mz``
    the whole modulation chain depends on the LR pixel alone and the maps are its layers. Positional initialisation
    makes ``z`` depend on the query: nothing folds, the one map is ``z`` itself.
    ``modulation[i]`` holds ``[A_i B_i]``.

    Args:
        features: Channels of the features.
        depth: Layers, N.
        width: Units of a layer, K.
        modulation: Input of the modulation layers after the first: the one before, ``m``; with the content, ``mz``;
            the synthesis layer before with the content, ``sz`` (the paper's, equation 4).
        init_q: Positional initialisation (equations 8 and 9).
    """

    layout = grid.NEAREST

    def __init__(self, features: int, depth: int, width: int, modulation: str, init_q: bool) -> None:
        super().__init__()
        self.features, self.width, self.kind = features, width, modulation
        content = UNFOLD * features
        self.map_channels = (content,) if init_q else (width,) * depth
        later = width + (content if modulation != "m" else 0)
        self.folded = not init_q
        self.first = nn.Linear(3, content) if init_q else None
        self.modulation = nn.ModuleList(nn.Linear(later if i else content, width) for i in range(depth))
        self.synthesis = nn.ModuleList(
            nn.Linear(width if i else (content if init_q else 3), width) for i in range(depth)
        )
        self.last = nn.Linear(width, 3)

    @property
    def layers(self) -> list[tuple[nn.Linear, nn.Linear]]:
        """(modulation, synthesis) of each layer."""
        return [cast(tuple[nn.Linear, nn.Linear], p) for p in zip(self.modulation, self.synthesis, strict=True)]

    @property
    def multiply_adds(self) -> int:
        per_query = [synthesis for _, synthesis in self.layers] + [self.last]
        if self.first is not None:
            per_query += [self.first, *(modulation for modulation, _ in self.layers)]
        hidden = 0 if self.first is not None or self.kind != "sz" else (len(self.layers) - 1) * self.width**2
        return sum(linear.weight.numel() for linear in per_query) + hidden

    def _split(self, i: int) -> tuple[Tensor, Tensor]:
        """``A_i`` [K, K] and ``B_i`` [K, 9·C]; either may have no columns."""
        hidden = self.width if i else 0
        weight = self.layers[i][0].weight
        return weight[:, :hidden], weight[:, hidden:]

    def fold(self, features: Tensor) -> Tensor:
        if self.first is not None:
            return unfold(features, self.features)
        parts = [self._split(i)[1] for i in range(len(self.layers))]
        kernels = torch.cat([b for b in parts if b.shape[1]])
        kernels = kernels.reshape(-1, self.features, 3, 3)
        if self.kind == "sz":
            return F.conv2d(features, kernels, self._biases(), padding=1)
        contents = torch.split(F.conv2d(features, kernels, padding=1), self.width, 1)
        maps: list[Tensor] = []
        for i, bias in enumerate(torch.split(self._biases(), self.width)):
            m = bias[:, None, None]
            if i < len(contents):
                m = m + contents[i]
            if i:
                m = m + F.conv2d(maps[-1], self._split(i)[0][:, :, None, None])
            maps.append(torch.relu(m))
        return torch.cat(maps, 1)

    def _biases(self) -> Tensor:
        return torch.cat([modulation.bias for modulation, _ in self.layers])

    def forward(self, rows: tuple[Tensor, ...], query: Tensor) -> Tensor:
        p = query
        if self.first is not None:
            p = torch.sin(self.first(query))  # equation 8
            z = p * rows[0]  # equation 9
            contents = [self._split(i)[1] for i in range(len(self.layers))]
            biases = torch.split(self._biases(), self.width)
            rows = tuple(F.linear(z, w, b) if w.shape[1] else b for w, b in zip(contents, biases, strict=True))
        s, m = p, rows[0]
        for i, (_, synthesis) in enumerate(self.layers):
            hidden = s if self.kind == "sz" else m
            if i == 0:
                m = torch.relu(rows[0])  # equation 2
            elif self.kind == "sz" or self.first is not None:
                m = torch.relu(torch.addmm(rows[i], hidden, self._split(i)[0].t()))  # equations 4, 6, 7
            else:
                m = rows[i]  # folded after its ReLU
            s = m * torch.sin(synthesis(s))  # equations 3, 5
        return self.last(s)  # type: ignore[no-any-return]


class LiifDecoder(Decoder):
    """LIIF (Chen et al., CVPR 2021): an MLP on unfolded features, local coordinate and cell.

    Its results at the four LR pixels around a position are weighted by area (section 3, local ensemble). The columns of
    its first layer that take the features fold to one map of ``width`` channels.

    Args:
        features: Channels of the features.
        depth: Hidden layers.
        width: Units of a layer.
    """

    layout = grid.ENSEMBLE

    def __init__(self, features: int, depth: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.map_channels = (width,)
        sizes = [UNFOLD * features + 4, *[width] * depth, 3]
        self.imnet = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))

    @property
    def layers(self) -> list[nn.Linear]:
        return [cast(nn.Linear, layer) for layer in self.imnet]

    @property
    def multiply_adds(self) -> int:
        first, *others = self.layers
        per_sample = 4 * first.out_features + sum(layer.weight.numel() for layer in others) + 3
        return self.layout.samples * per_sample

    def fold(self, features: Tensor) -> Tensor:
        first = self.layers[0]
        kernels = first.weight[:, :-4].reshape(-1, self.features, 3, 3)
        return F.conv2d(features, kernels, first.bias, padding=1)

    def forward(self, rows: tuple[Tensor, ...], query: Tensor) -> Tensor:
        x = torch.addmm(rows[0], query[:, :4], self.layers[0].weight[:, -4:].t())
        for layer in self.layers[1:]:
            x = layer(torch.relu(x))
        weighted = x * query[:, 4:]
        return weighted.reshape(-1, self.layout.samples, 3).sum(1)


class MetaSrDecoder(Decoder):
    """Meta-SR (Hu et al., CVPR 2019): an MLP of the position predicts the weights of a 3×3 filter per colour.

    Linear in the features: with ``h`` the hidden layer, colour c is ``sum_k h_k (z W_kc) + z b_c``, so that three
    maps of ``width`` channels and one of 3 are all a query needs.

    Args:
        features: Channels of the features.
        width: Units of the hidden layer.
    """

    layout = grid.CORNER

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.map_channels = (width, width, width, 3)
        self.hidden = nn.Linear(3, width)
        self.filters = nn.Linear(width, UNFOLD * features * 3)  # colour runs fastest

    @property
    def multiply_adds(self) -> int:
        return self.hidden.weight.numel() + 3 * self.hidden.out_features

    def fold(self, features: Tensor) -> Tensor:
        def kernels(parameter: Tensor) -> Tensor:  # [9·C·3, n] to one filter per colour and n
            per_colour = parameter.reshape(-1, 3, parameter.shape[1]).permute(1, 2, 0)
            return per_colour.reshape(-1, self.features, 3, 3)

        both = torch.cat([kernels(self.filters.weight), kernels(self.filters.bias[:, None])])
        return F.conv2d(features, both, padding=1)

    def forward(self, rows: tuple[Tensor, ...], query: Tensor) -> Tensor:
        *colours, base = rows
        h = torch.relu(self.hidden(query))
        return torch.stack([(h * row).sum(1) for row in colours], 1) + base


@dataclass(frozen=True, config=STRICT)
class DiinnConfig:
    """DIINN's decoder: ``depth`` layers (N) of ``width`` units (K); the paper's is 4 × 256, ``sz``, no ``init_q``."""

    name: Literal["diinn"] = "diinn"
    depth: int = Field(default=4, ge=1, le=64)
    width: int = Field(default=256, ge=1, le=4096)
    modulation: Literal["m", "mz", "sz"] = "sz"
    init_q: bool = False

    def build(self, features: int) -> Decoder:
        return DiinnDecoder(features, self.depth, self.width, self.modulation, self.init_q)


@dataclass(frozen=True, config=STRICT)
class LiifConfig:
    """LIIF's decoder: ``depth`` hidden layers of ``width`` units; the published one is 4 × 256."""

    name: Literal["liif"] = "liif"
    depth: int = Field(default=4, ge=1, le=64)
    width: int = Field(default=256, ge=1, le=4096)

    def build(self, features: int) -> Decoder:
        return LiifDecoder(features, self.depth, self.width)


@dataclass(frozen=True, config=STRICT)
class MetaSrConfig:
    """Meta-SR's decoder: one hidden layer of ``width`` units; the published one has 256."""

    name: Literal["metasr"] = "metasr"
    width: int = Field(default=256, ge=1, le=4096)

    def build(self, features: int) -> Decoder:
        return MetaSrDecoder(features, self.width)


DecoderConfig = Annotated[DiinnConfig | LiifConfig | MetaSrConfig, Field(discriminator="name")]
