"""What a frame suffered, told from the frame: a few strided convolutions on a sample of its patches.

As CBDNet's estimator (Guo et al., CVPR 2019, section 3.2), but one pair of numbers a frame: which places of which
patches count is learnt, for each feature by itself, so that plain ones can speak for a frame full of texture.
"""

from pathlib import Path
from typing import Any

import torch
from diinn.runtime.errors import CheckpointError
from diinn.train import checkpoint
from diinn.train.model import DialConfig
from torch import Tensor, nn

FORMAT, VERSION = "diinn-estimator", 1
LEVELS = 16.0  # of a patch's values around their mean, typically
WIDTHS = (16, 32, 32, 32)


class Estimator(nn.Module):
    """Patches of frames to their (noise, compression): noise is the root mean square of what was added, in grey levels,
    compression 100 - JPEG quality; ``forward`` may go a little beyond what ``dial`` says, ``estimate`` does not."""

    def __init__(self, dial: DialConfig) -> None:
        super().__init__()
        self.dial = dial
        a, b, c, d = WIDTHS
        self.body = nn.Sequential(
            nn.Conv2d(3, a, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(a, b, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(b, c, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(c, d, 3, padding=1),
            nn.ReLU(),
        )
        self.features, self.weights = nn.Conv2d(d, d, 1), nn.Conv2d(d, d, 1)
        self.head = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 2))

    def forward(self, patches: Tensor) -> Tensor:
        """[B, S, 3, 32, 32] uint8 levels as float32 (0 to 255), RGB, S patches of each frame, to [B, 2]."""
        frames = len(patches)
        x = patches.flatten(0, 1)
        x = self.body((x - x.mean((2, 3), keepdim=True)) / LEVELS)  # how bright a patch is tells little
        # [B, places of all patches, C]
        values, weights = (
            conv(x).flatten(2).transpose(1, 2).reshape(frames, -1, WIDTHS[-1]) for conv in (self.features, self.weights)
        )
        pooled = (values * torch.softmax(weights, 1)).sum(1)
        most = pooled.new_tensor([self.dial.noise, self.dial.compression])
        return self.head(pooled) * most  # type: ignore[no-any-return]

    def estimate(self, patches: Tensor) -> Tensor:
        """``forward``, within 0 and what ``dial`` says."""
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
