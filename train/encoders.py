"""Encoders: an LR frame [B, inputs, H, W] to a feature map [B, channels, H, W] of the same size (paper, section 3.1).

Every encoder has ``channels`` (of its output) and ``receptive_radius``: how many LR pixels away from
a feature an input pixel can still change it. All convolutions are 3×3 or 1×1, zero padded.
"""

from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

STRICT = ConfigDict(extra="forbid")


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), no normalisation (EDSR, section 3.1)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(torch.relu(self.conv1(x)))
        return x + y


class ResidualEncoder(nn.Module):
    """EDSR's body: head, residual blocks, tail, long skip; no mean shift, no upsampler (EDSR, section 3.2).

    Args:
        channels: Of every layer and of the output.
        blocks: Residual blocks.
        inputs: Planes of a frame: 3 for RGB, 5 with a dial.

    Attributes:
        channels: Of the output.
        receptive_radius: LR pixels around a feature that it depends on.
    """

    def __init__(self, channels: int, blocks: int, inputs: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.receptive_radius = 2 + 2 * blocks
        self.head = nn.Conv2d(inputs, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)))
        self.tail = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        y: Tensor = self.tail(self.blocks(x))
        return x + y


class DenseLayer(nn.Module):
    """Concatenates relu(conv(x)) to x (RDN, equation 5)."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(channels, growth, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(x)), 1)


class ResidualDenseBlock(nn.Module):
    """Dense layers, 1×1 local feature fusion, local skip (RDN, section 3.2)."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(*(DenseLayer(channels + i * growth, growth) for i in range(layers)))
        self.LFF = nn.Conv2d(channels + layers * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.LFF(self.convs(x)) + x  # type: ignore[no-any-return]


class Rdn(nn.Module):
    """RDN without its upsampler (Zhang et al., CVPR 2018). RDN-B is 16 blocks of 8 layers, 64 channels.

    Parameters have the names of the published checkpoints, which so load unchanged.

    Args:
        channels: Of the features between blocks and of the output.
        growth: Channels that each dense layer adds.
        blocks: Residual dense blocks.
        layers: Dense layers of a block.
        inputs: Planes of a frame: 3 for RGB, 5 with a dial.

    Attributes:
        channels: Of the output.
        receptive_radius: LR pixels around a feature that it depends on.
    """

    def __init__(self, channels: int, growth: int, blocks: int, layers: int, inputs: int = 3) -> None:
        super().__init__()
        self.channels = channels
        self.receptive_radius = 3 + blocks * layers
        self.SFENet1 = nn.Conv2d(inputs, channels, 3, padding=1)
        self.SFENet2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.RDBs = nn.ModuleList(ResidualDenseBlock(channels, growth, layers) for _ in range(blocks))
        self.GFF = nn.Sequential(nn.Conv2d(blocks * channels, channels, 1), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.SFENet1(x)
        x = self.SFENet2(shallow)
        outputs = []
        for block in self.RDBs:
            x = block(x)
            outputs.append(x)
        return shallow + self.GFF(torch.cat(outputs, 1))  # type: ignore[no-any-return]


@dataclass(frozen=True, config=STRICT)
class CompactConfig:
    """For robots: a residual encoder of any width and depth; every layer fuses in every engine."""

    name: Literal["compact"] = "compact"
    channels: int = Field(default=48, ge=1, le=1024)
    blocks: int = Field(default=7, ge=0, le=256)

    def build(self, inputs: int) -> ResidualEncoder:
        return ResidualEncoder(self.channels, self.blocks, inputs)


@dataclass(frozen=True, config=STRICT)
class EdsrConfig:
    """EDSR-baseline: 16 blocks of 64 channels."""

    name: Literal["edsr"] = "edsr"

    def build(self, inputs: int) -> ResidualEncoder:
        return ResidualEncoder(channels=64, blocks=16, inputs=inputs)


@dataclass(frozen=True, config=STRICT)
class RdnConfig:
    """RDN-B, the paper's encoder; fewer blocks or layers make smaller ones."""

    name: Literal["rdn"] = "rdn"
    channels: int = Field(default=64, ge=1, le=1024)
    growth: int = Field(default=64, ge=1, le=1024)
    blocks: int = Field(default=16, ge=1, le=256)
    layers: int = Field(default=8, ge=1, le=64)

    def build(self, inputs: int) -> Rdn:
        return Rdn(self.channels, self.growth, self.blocks, self.layers, inputs)


EncoderConfig = Annotated[CompactConfig | EdsrConfig | RdnConfig, Field(discriminator="name")]
