"""How quality is measured: PSNR of a super-resolved LR frame against the image it was made from.

HR: the whole uint8 RGB image. LR: antialiased bicubic to round(size / s), uint8. SR: exactly the HR
size, clamped to [0, 1], not quantised. PSNR over all pixels and channels, no border shave, no luma;
the mean over images.
"""

from collections.abc import Callable

import torch
from diinn.runtime import grid
from diinn.train import degradation
from diinn.train.model import SuperResolutionModel
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

PROTOCOL = (
    "LR: antialiased bicubic (a=-0.5) to round(size/s), uint8; SR at exactly the HR size, clamped to [0, 1]; "
    "RGB PSNR over all pixels, no border shave; mean over images"
)
Upscaler = Callable[[Tensor, tuple[int, int]], Tensor]  # LR [3, h, w] and HR (height, width) to SR [3, H, W]


def bicubic_upscaler(lr: Tensor, shape: tuple[int, int]) -> Tensor:
    """The baseline of every table."""
    return degradation.bicubic(lr, shape)


@torch.inference_mode()
def super_resolve(model: SuperResolutionModel, lr: Tensor, shape: tuple[int, int]) -> Tensor:
    """SR [3, H, W] of one LR frame [3, h, w] (RGB in [0, 1]) at ``shape`` (height, width), in PyTorch."""
    return decode(model, lr, grid.resize((lr.shape[2], lr.shape[1]), shape[::-1])).t().reshape(3, *shape)


@torch.inference_mode()
def decode(model: SuperResolutionModel, lr: Tensor, queries: grid.Queries, chunk: int = 65536) -> Tensor:
    """RGB [Q, 3] of all ``queries`` over one LR frame [3, h, w]; what lies outside it is not replaced."""
    maps = [m.reshape(-1, m.shape[-1]) for m in model.encode(lr.unsqueeze(0))]
    out = []
    for start in range(0, queries.count, chunk):
        index, query = queries.arrays(slice(start, min(start + chunk, queries.count)))
        at = torch.from_numpy(index).to(lr.device)
        out.append(model.decode(tuple(m.index_select(0, at) for m in maps), torch.from_numpy(query).to(lr.device)))
    return torch.cat(out)


def psnr(hr: Tensor, scale: float, upscale: Upscaler) -> float:
    """PSNR in dB of one HR image, float [3, H, W] in [0, 1], at one scale."""
    shape = (hr.shape[1], hr.shape[2])
    sr = upscale(degradation.reduce(hr, degradation.lr_shape(shape, scale)), shape).clamp(0, 1)
    return float(peak_signal_noise_ratio(sr, hr, data_range=1.0))
