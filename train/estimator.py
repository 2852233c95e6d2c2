"""Estimates a frame's degradation from the frame: a small network on the block transforms of a sample of its patches.

As CBDNet's estimator (Guo et al., CVPR 2019, section 3.2) it is trained on known noise, but it looks at what a codec
does: 8×8 cosine transforms, every 4 pixels, so on the codec's grid and astride of it, and once more at half the size.
Noise of any kind shows in the size of coefficients, compression in how those on the grid differ from those astride.
Which places of which patches count is learnt, for each feature by itself, so that plain ones can speak for a frame full
of texture.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diinn.runtime.errors import CheckpointError
from diinn.train import checkpoint
from diinn.train.model import DialConfig
from torch import Tensor, nn

FORMAT, VERSION = "diinn-estimator", 1
BLOCK, STRIDE = 8, 4
# (row, column) frequencies looked at, and the colours they are of: luma, blue and red difference (BT.601)
LUMA_FREQUENCIES, CHROMA_FREQUENCIES = (0, 1, 2, 3, 5, 7), (0, 1, 3, 7)
COLOURS = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))
WIDTH = 48


def cosines() -> Tensor:
    """The transform's filters [n, 3, 8, 8], on RGB; none of them has a mean."""
    places = torch.arange(BLOCK, dtype=torch.float64)
    filters = []
    for colour, frequencies in zip(COLOURS, (LUMA_FREQUENCIES, CHROMA_FREQUENCIES, CHROMA_FREQUENCIES), strict=True):
        waves = {k: torch.cos((2 * places + 1) * k * math.pi / (2 * BLOCK)) for k in frequencies}
        for row in frequencies:
            for column in frequencies:
                if row or column:
                    wave = torch.outer(waves[row], waves[column])
                    filters.append(torch.tensor(colour, dtype=torch.float64)[:, None, None] * wave / wave.norm())
    return torch.stack(filters).float()


class _Pooled(nn.Module):
    """Features of a frame's places pooled, [B·S, C, h, w] to [B, WIDTH]: means with learnt weights."""

    def __init__(self, seen: int, side: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(seen, WIDTH, side, stride=stride, padding=side // 2),
            nn.ReLU(),
            nn.Conv2d(WIDTH, WIDTH, 1),
            nn.ReLU(),
        )
        self.features, self.weights = nn.Conv2d(WIDTH, WIDTH, 1), nn.Conv2d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        places = self.body(x)
        values, weights = (
            conv(places).flatten(2).transpose(1, 2).reshape(frames, -1, WIDTH) for conv in (self.features, self.weights)
        )
        pooled: Tensor = (values * torch.softmax(weights, 1)).sum(1)
        return pooled


class Estimator(nn.Module):
    """Patches of frames to their (noise, compression).

    Noise is the root mean square of what was added, in grey levels, compression 100 - JPEG quality; ``forward`` may go
    a little beyond the range of ``dial``, ``estimate`` does not.
    """

    def __init__(self, dial: DialConfig) -> None:
        super().__init__()
        self.dial = dial
        self.register_buffer("cosines", cosines(), persistent=False)
        seen = len(self.cosines) + 3
        self.fine = _Pooled(seen, 3, stride=2)  # from every 4 pixels to blocks on the codec's grid
        self.coarse = _Pooled(seen, 1, stride=1)
        self.head = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2))

    cosines: Tensor

    def forward(self, patches: Tensor) -> Tensor:
        """[B, S, 3, 32, 32] uint8 levels as float32 (0 to 255), RGB, S patches of each frame, to [B, 2]."""
        frames, pixels = len(patches), patches.flatten(0, 1)
        fine = self.fine(self._transformed(pixels), frames)
        coarse = self.coarse(self._transformed(F.avg_pool2d(pixels, 2)), frames)
        most = patches.new_tensor([self.dial.noise, self.dial.compression])
        return self.head(torch.cat((fine, coarse), 1)) * most  # type: ignore[no-any-return]

    def _transformed(self, pixels: Tensor) -> Tensor:
        """Sizes of a block's coefficients, and its mean colour: noise is stronger in shadows."""
        coefficients = F.conv2d(pixels, self.cosines, stride=STRIDE)
        means = F.avg_pool2d(pixels, BLOCK, STRIDE)
        return torch.cat((torch.log1p(coefficients.abs()) - 1.5, means / 64 - 2), 1)  # centred on 0

    def estimate(self, patches: Tensor) -> Tensor:
        """``forward``, clamped to 0 and the range of ``dial``."""
        most = patches.new_tensor([self.dial.noise, self.dial.compression])
        return torch.minimum(self(patches).clamp(min=0), most)


def save(path: Path, estimator: Estimator, run: dict[str, Any], log: list[dict[str, float]]) -> None:
    """Write a self-describing file that ``torch.load(weights_only=True)`` reads."""
    dial = {"noise": estimator.dial.noise, "compression": estimator.dial.compression}
    state = {k: v.detach().cpu().contiguous().clone() for k, v in estimator.state_dict().items()}
    checkpoint.write(path, {"format": FORMAT, "version": VERSION, "dial": dial, "state": state, "run": run, "log": log})


def load(path: Path) -> Estimator:
    """Read what ``save`` wrote; CheckpointError where it is something else."""
    content = checkpoint.read(path)
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise CheckpointError(f"{path} is no estimator of version {VERSION}: give what diinn-train estimator wrote")
    try:
        estimator = Estimator(DialConfig(**content["dial"]))
        estimator.load_state_dict(content["state"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path} is a damaged estimator: {str(error).splitlines()[0]}") from None
    if not all(torch.isfinite(value).all() for value in estimator.state_dict().values()):
        raise CheckpointError(f"{path} holds NaN or infinity: train it again")
    return estimator.eval()
