"""DIINN as the paper publishes it: full-size content features, 1×1 convolutions over all of them.

Written from the paper alone (section 3, equations 2-5) and kept apart from the folded form and from
``runtime.grid``, so that the two can be held against each other and timed side by side.
"""

import torch
import torch.nn.functional as F
from diinn.train.decoders import DiinnDecoder
from diinn.train.model import SuperResolutionModel
from torch import Tensor, nn


class PublishedDecoder(nn.Module):
    """Feature map and output size to the network's raw output, everything at output size."""

    def __init__(self, features: int, depth: int, width: int) -> None:
        super().__init__()
        content = 9 * features
        self.K = nn.ModuleList(nn.Conv2d(content + (width if i else 0), width, 1) for i in range(depth))
        self.Q = nn.ModuleList(nn.Conv2d(width if i else 3, width, 1) for i in range(depth))
        self.last_layer = nn.Conv2d(width, 3, 1)

    def forward(self, features: Tensor, shape: tuple[int, int]) -> Tensor:
        """features [B, C, H, W] and (height, width) to [B, 3, height, width]."""
        batch, _, height, width = features.shape
        unfolded = F.unfold(features, 3, padding=1).view(batch, -1, height, width)
        z = F.interpolate(unfolded, size=shape, mode="nearest-exact")
        p = positional_features((height, width), shape).to(features).expand(batch, -1, -1, -1)
        s = p
        for i, (modulation, synthesis) in enumerate(zip(self.K, self.Q, strict=True)):
            m = torch.relu(modulation(torch.cat((s, z), 1) if i else z))
            s = m * torch.sin(synthesis(s))
        return self.last_layer(s)  # type: ignore[no-any-return]


class PublishedModel(nn.Module):
    """The published pipeline with the weights of a folded model: frames [B, 3, H, W] in [0, 1] to RGB."""

    def __init__(self, model: SuperResolutionModel) -> None:
        super().__init__()
        folded = model.decoder
        assert isinstance(folded, DiinnDecoder)
        self.config, self.encoder = model.config, model.encoder
        self.decoder = PublishedDecoder(folded.features, len(folded.map_channels), folded.width)
        named: dict[str, nn.Linear] = {}
        for i, (modulation, synthesis) in enumerate(folded.layers):
            named |= {f"K.{i}": modulation, f"Q.{i}": synthesis}
        for name, linear in (named | {"last_layer": folded.last}).items():
            convolution = self.decoder.get_submodule(name)
            convolution.load_state_dict({"weight": linear.weight[:, :, None, None], "bias": linear.bias})

    def forward(self, frames: Tensor, shape: tuple[int, int]) -> Tensor:
        """RGB [B, 3, height, width] in [0, 1], unclamped."""
        features = self.encoder((frames - self.config.mean) / self.config.std)
        return self.decoder(features, shape) * self.config.std + self.config.mean  # type: ignore[no-any-return]


def positional_features(lr: tuple[int, int], out: tuple[int, int]) -> Tensor:
    """[1, 3, height, width]: local y, local x (Figure 3) and the area ratio."""
    channels = []
    for axis, (n_in, n_out) in enumerate(zip(lr, out, strict=True)):
        centres = -1 + (2 * torch.arange(n_out, dtype=torch.float64) + 1) / n_out
        lr_centres = -1 + (2 * torch.arange(n_in, dtype=torch.float64) + 1) / n_in
        nearest = F.interpolate(lr_centres[None, None], size=n_out, mode="nearest-exact")[0, 0]
        local = (centres - nearest) * n_in
        channels.append((local[:, None] if axis == 0 else local[None, :]).expand(out))
    ratio = torch.full(out, lr[0] * lr[1] / (out[0] * out[1]), dtype=torch.float64)
    return torch.stack([*channels, ratio])[None].float()
