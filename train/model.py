"""The network that trains and exports: normalisation, encoder, folded decoder."""

import torch
from diinn.train.decoders import DecoderConfig, DiinnConfig
from diinn.train.encoders import STRICT, CompactConfig, EncoderConfig
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn


@dataclass(frozen=True, config=STRICT)
class DialConfig:
    """A network that is given how degraded a frame is, by two planes beside RGB (FFDNet, Zhang et al., IEEE TIP 2018).

    noise: highest level trained, root mean square in grey levels; compression: highest, 100 - JPEG quality
    """

    noise: float = Field(default=20.0, gt=0, le=100)
    compression: float = Field(default=50.0, gt=0, le=99)


@dataclass(frozen=True, config=STRICT)
class ModelConfig:
    """Everything that decides the network's shape, and the normalisation it was trained with.

    mean, std: frames in [0, 1] enter the encoder as ``(x - mean) / std`` and RGB leaves the decoder
        as ``y * std + mean``
    dial: what the network is given beside the frame, null for none
    """

    encoder: EncoderConfig = Field(default_factory=lambda: CompactConfig())
    decoder: DecoderConfig = Field(default_factory=lambda: DiinnConfig())
    mean: float = Field(default=0.5, allow_inf_nan=False)
    std: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    dial: DialConfig | None = None

    def with_strength(self, frames: Tensor, strength: Tensor | None = None) -> Tensor:
        """``SuperResolutionModel.with_strength``."""
        if self.dial is None:
            return frames
        strength = frames.new_zeros(len(frames), 2) if strength is None else strength
        planes = strength[:, :, None, None].expand(-1, -1, *frames.shape[2:])
        return torch.cat((frames, planes), 1)

    def normalised(self, frames: Tensor) -> Tensor:
        """Frames with their strength as the encoder takes them.

        RGB is normalised by ``mean`` and ``std``, strengths are divided by the highest trained.
        """
        if self.dial is None:
            return (frames - self.mean) / self.std
        rows = [[self.mean] * 3 + [0, 0], [self.std] * 3 + [self.dial.noise, self.dial.compression]]
        means, scales = frames.new_tensor(rows)
        found: Tensor = (frames - means[:, None, None]) / scales[:, None, None]
        return found


class SuperResolutionModel(nn.Module):
    """Frames and queries to RGB, both in [0, 1], colour order RGB (paper, equation 1).

    Attributes:
        config: Encoder, decoder, normalisation and dial.
        encoder: Normalised frames [B, inputs, H, W] to features [B, C, H, W].
        decoder: The decoder, in folded form.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = config.encoder.build(self.inputs)
        self.decoder = config.decoder.build(self.encoder.channels)

    @property
    def inputs(self) -> int:
        """Planes of a frame as ``encode`` takes it: RGB, and two of strength where there is a dial."""
        return 3 if self.config.dial is None else 5

    @property
    def receptive_radius(self) -> int:
        """LR pixels around a query's first sample that its RGB depends on: the exact halo of a band."""
        return self.encoder.receptive_radius + self.decoder.fold_radius + len(self.decoder.layout.shifts) - 1

    def with_strength(self, frames: Tensor, strength: Tensor | None = None) -> Tensor:
        """Frames as ``encode`` takes them: where there is a dial, with planes of noise and compression.

        Args:
            frames: float32 [B, 3, H, W], RGB in [0, 1].
            strength: float [B, 2], (noise, compression); default 0 and 0.

        Returns:
            float32 [B, inputs, H, W].
        """
        return self.config.with_strength(frames, strength)

    def encode(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The maps of frames.

        Args:
            frames: float32 [B, inputs, H, W], RGB in [0, 1] and with a dial their strength, see ``with_strength``.

        Returns:
            The decoder's maps, channels last: float32 [B, H, W, C] each.
        """
        folded = self.decoder.fold(self.features(frames)).permute(0, 2, 3, 1)
        maps: tuple[Tensor, ...] = torch.split(folded, list(self.decoder.map_channels), -1)
        return maps

    def features(self, frames: Tensor) -> Tensor:
        """The encoder's features of ``encode``'s frames: [B, C, H, W]."""
        features: Tensor = self.encoder(self.config.normalised(frames))
        return features

    def decode(self, rows: tuple[Tensor, ...], query: Tensor) -> Tensor:
        """Gathered rows ([Q·samples, C] each) and query [Q·samples, F], float32, to RGB [Q, 3], unclamped."""
        return self.decoder(rows, query) * self.config.std + self.config.mean  # type: ignore[no-any-return]

    def forward(self, frames: Tensor, index: Tensor, query: Tensor) -> Tensor:
        """RGB [Q, 3] at queries whose ``index`` int64 [Q·samples] is a row of the flattened [B·H·W] maps.

        The decoder runs in float32 under mixed precision too: a sine needs its argument exact.
        """
        maps = self.encode(frames)
        # index_select on channels-last rows: gathering from NCHW is ruinous in the backward pass.
        rows = tuple(m.reshape(-1, m.shape[-1]).index_select(0, index).float() for m in maps)
        with torch.autocast(query.device.type, enabled=False):
            return self.decode(rows, query)
