"""DIINN, LIIF and Meta-SR as their papers publish them: features at output size, coordinates in floating point.

Written from the papers alone and kept apart from the folded forms and from ``runtime.geometry.grid``, so that the two
can be held against each other and timed side by side. Every decoder here maps features [B, C, h, w] and an output size
(height, width) to the network's raw output [B, 3, height, width].
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diinn.train.decoders import DiinnDecoder, LiifDecoder, MetaSrDecoder
from diinn.train.model import SuperResolutionModel
from torch import Tensor, nn

EPSILON = 1e-6  # what LIIF and Meta-SR move a coordinate by, so that one on a border belongs to the later pixel
CHUNK = 30_000  # queries at a time: LIIF's and Meta-SR's evaluation takes as many


class PublishedDiinn(nn.Module):
    """DIINN (section 3, equations 2-9): 1×1 convolutions over all features at output size.

    Args:
        decoder: The folded form whose weights are taken.
    """

    def __init__(self, decoder: DiinnDecoder) -> None:
        super().__init__()
        self.kind = decoder.kind
        self.first_layer = _convolution(decoder.first) if decoder.first is not None else None
        self.K = nn.ModuleList(_convolution(m) for m, _ in decoder.layers)
        self.Q = nn.ModuleList(_convolution(q) for _, q in decoder.layers)
        self.last_layer = _convolution(decoder.last)

    def forward(self, features: Tensor, shape: tuple[int, int]) -> Tensor:
        z = F.interpolate(_unfolded(features), size=shape, mode="nearest-exact")
        p = positional_features((features.shape[2], features.shape[3]), shape).to(features)
        p = p.expand(len(features), -1, -1, -1)
        if self.first_layer is not None:
            p = torch.sin(self.first_layer(p))
            z = p * z
        s, entering = p, z
        for modulation, synthesis in zip(self.K, self.Q, strict=True):
            m = torch.relu(modulation(entering))
            s = m * torch.sin(synthesis(s))
            hidden = s if self.kind == "sz" else m
            entering = hidden if self.kind == "m" else torch.cat((hidden, z), 1)
        return self.last_layer(s)  # type: ignore[no-any-return]


class PublishedLiif(nn.Module):
    """LIIF, section 3: feature unfolding, local ensemble, cell decoding.

    Args:
        decoder: The folded form whose weights are taken.
    """

    def __init__(self, decoder: LiifDecoder) -> None:
        super().__init__()
        layers = [layer for linear in decoder.imnet for layer in (linear, nn.ReLU())]
        self.imnet = nn.Sequential(*layers[:-1])

    def forward(self, features: Tensor, shape: tuple[int, int]) -> Tensor:
        lr, unfolded = (features.shape[2], features.shape[3]), _unfolded(features)
        return _in_chunks(shape, lambda coord: self._query(unfolded, coord, lr, shape))

    def _query(self, unfolded: Tensor, coord: Tensor, lr: tuple[int, int], shape: tuple[int, int]) -> Tensor:
        """Unfolded features [B, 9·C, h, w] and coordinates (y, x) [Q, 2] to [B, Q, 3]."""
        batch, size = len(unfolded), torch.tensor(lr)
        results, areas = [], []
        for vy in (-1, 1):
            for vx in (-1, 1):
                shift = torch.tensor([vy, vx]) / size + EPSILON
                at = (coord + shift).clamp(-1 + EPSILON, 1 - EPSILON)
                nearest = _nearest(lr, at)
                rel = (coord - _centres(lr).flatten(1)[:, nearest].t()) * size
                cell = (2 / torch.tensor(shape) * size).expand_as(rel)
                position = torch.cat([rel, cell], -1).to(unfolded).expand(batch, -1, -1)
                inputs = torch.cat([unfolded.flatten(2)[:, :, nearest].transpose(1, 2), position], -1)
                results.append(self.imnet(inputs))
                areas.append((rel[:, 0] * rel[:, 1]).abs() + 1e-9)
        total = torch.stack(areas).sum(0)
        opposite = (areas[3], areas[2], areas[1], areas[0])
        weighted = [r * (a / total)[:, None].to(r) for r, a in zip(results, opposite, strict=True)]
        return torch.stack(weighted).sum(0)


class PublishedMetaSr(nn.Module):
    """Meta-SR, section 3.3: the weights of a 3×3 filter, predicted for every output pixel.

    Args:
        decoder: The folded form whose weights are taken.
    """

    def __init__(self, decoder: MetaSrDecoder) -> None:
        super().__init__()
        self.imnet = nn.Sequential(decoder.hidden, nn.ReLU(), decoder.filters)

    def forward(self, features: Tensor, shape: tuple[int, int]) -> Tensor:
        lr, unfolded = (features.shape[2], features.shape[3]), _unfolded(features)
        return _in_chunks(shape, lambda coord: self._query(unfolded, coord, lr, shape))

    def _query(self, unfolded: Tensor, coord: Tensor, lr: tuple[int, int], shape: tuple[int, int]) -> Tensor:
        """Unfolded features [B, 9·C, h, w] and coordinates (y, x) [Q, 2] to [B, Q, 3]."""
        size = torch.tensor(lr)
        corner = coord - 1 / torch.tensor(shape)
        at = (corner + EPSILON).clamp(-1 + EPSILON, 1 - EPSILON)
        nearest = _nearest(lr, at)
        lr_corner = _centres(lr).flatten(1)[:, nearest].t() - 1 / size
        rel = (corner - lr_corner) * size / 2
        inverse_scale = torch.full((len(coord), 1), lr[0] / shape[0])
        filters = self.imnet(torch.cat([rel, inverse_scale], 1).to(unfolded)).reshape(len(coord), -1, 3)
        return torch.einsum("bzq,qzc->bqc", unfolded.flatten(2)[:, :, nearest], filters)


class PublishedModel(nn.Module):
    """The published pipeline with the weights of a folded model.

    Args:
        model: The folded model; its encoder is shared, not copied.
    """

    def __init__(self, model: SuperResolutionModel) -> None:
        super().__init__()
        self.config, self.encoder, folded = model.config, model.encoder, model.decoder
        if isinstance(folded, DiinnDecoder):
            self.decoder: nn.Module = PublishedDiinn(folded)
        elif isinstance(folded, LiifDecoder):
            self.decoder = PublishedLiif(folded)
        else:
            assert isinstance(folded, MetaSrDecoder)
            self.decoder = PublishedMetaSr(folded)

    def forward(self, frames: Tensor, shape: tuple[int, int]) -> Tensor:
        """Super-resolve whole frames.

        Args:
            frames: float32 [B, 3, H, W], RGB in [0, 1].
            shape: (height, width) of the output.

        Returns:
            RGB float32 [B, 3, height, width] in [0, 1], unclamped.
        """
        features = self.encoder(self.config.normalised(self.config.with_strength(frames)))
        return self.decoder(features, shape) * self.config.std + self.config.mean  # type: ignore[no-any-return]


def positional_features(lr: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """[1, 3, height, width]: local y, local x (Figure 3) and the area ratio."""
    nearest = F.interpolate(_centres(lr)[None], size=out, mode="nearest-exact")[0]
    local = (_centres(out) - nearest) * torch.tensor(lr)[:, None, None]
    ratio = torch.full((1, *out), lr[0] * lr[1] / (out[0] * out[1]), dtype=torch.float64)
    return torch.cat([local, ratio])[None].float()


def _centres(shape: tuple[int, int]) -> Tensor:
    """Global coordinates (y, x) of all pixel centres, float64 [2, height, width] in [-1, 1]."""
    axes = [-1 + (2 * torch.arange(n, dtype=torch.float64) + 1) / n for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def _unfolded(features: Tensor) -> Tensor:
    batch, _, height, width = features.shape
    return F.unfold(features, 3, padding=1).view(batch, -1, height, width)


def _nearest(lr: tuple[int, int], coord: Tensor) -> Tensor:
    """Row-major index [Q] of the LR pixel nearest to each coordinate (y, x) [Q, 2]."""
    numbers = torch.arange(lr[0] * lr[1], dtype=coord.dtype).reshape(1, 1, *lr)
    at = coord.flip(-1)[None, None]
    return F.grid_sample(numbers, at, mode="nearest", align_corners=False)[0, 0, 0].long()


def _in_chunks(shape: tuple[int, int], query: Callable[[Tensor], Tensor]) -> Tensor:
    """All output pixels through ``query``, coordinates [Q, 2] to [B, Q, 3], some at a time."""
    rgb = torch.cat([query(coord) for coord in torch.split(_centres(shape).flatten(1).t(), CHUNK)], 1)
    return rgb.transpose(1, 2).reshape(len(rgb), 3, *shape)


def _convolution(linear: nn.Linear) -> nn.Conv2d:
    """A 1×1 convolution with the parameters of ``linear``."""
    convolution = nn.Conv2d(linear.in_features, linear.out_features, 1)
    assert linear.bias is not None
    convolution.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": linear.bias})
    return convolution
