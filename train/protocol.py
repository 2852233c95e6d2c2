"""How quality is measured: a super-resolved LR frame against the image it was made from.

HR: the whole uint8 RGB image. LR: antialiased bicubic to round(size / s), uint8. SR: exactly the HR
size, clamped to [0, 1], not quantised. PSNR over all pixels and channels, no border shave, no luma;
SSIM with an 11×11 gaussian of sigma 1.5 over the valid region; LR-PSNR between the antialiased bicubic
reductions of SR and HR to the LR size, in float; the mean over images.
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from diinn.runtime.geometry import grid
from diinn.train import degradation
from diinn.train.model import SuperResolutionModel
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio

PROTOCOL = (
    "LR: antialiased bicubic (a=-0.5) to round(size/s), uint8; SR at exactly the HR size, clamped to [0, 1]; "
    "RGB PSNR over all pixels, no border shave; SSIM 11x11 gaussian, sigma 1.5, valid region; LR-PSNR between the "
    "bicubic reductions of SR and HR, in float; mean over images"
)
SSIM_BORDER, SSIM_SIGMA = 5, 1.5  # half of SSIM's window: pixels whose window leaves the image; its gaussian
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2
Degrade = Callable[[Tensor], Tensor]  # LR [3, h, w] as the protocol makes it to LR as it is measured
Upscaler = Callable[[Tensor, tuple[int, int]], Tensor]  # LR [3, h, w] and HR (height, width) to SR [3, H, W]


def bicubic_upscaler(lr: Tensor, shape: tuple[int, int]) -> Tensor:
    """Antialiased bicubic, the baseline of every table."""
    return degradation.bicubic(lr, shape)


@torch.inference_mode()
def super_resolve(
    model: SuperResolutionModel,
    lr: Tensor,
    shape: tuple[int, int],
    strength: tuple[float, float] = degradation.NONE,
) -> Tensor:
    """SR [3, H, W] of one LR frame [3, h, w] (RGB in [0, 1]) at ``shape`` (height, width), in PyTorch.

    strength: (noise, compression) that a model with a dial is given
    """
    queries = grid.resize((lr.shape[2], lr.shape[1]), shape[::-1], model.decoder.layout)
    return decode(model, lr, queries, strength).t().reshape(3, *shape)


@torch.inference_mode()
def decode(
    model: SuperResolutionModel,
    lr: Tensor,
    queries: grid.Queries,
    strength: tuple[float, float] = degradation.NONE,
    chunk: int = 65536,
) -> Tensor:
    """RGB [Q, 3] of all ``queries`` over one LR frame [3, h, w]; what lies outside it is not replaced."""
    frames = model.with_strength(lr.unsqueeze(0), lr.new_tensor([strength]))
    maps = [m.reshape(-1, m.shape[-1]) for m in model.encode(frames)]
    out = []
    for start in range(0, queries.count, chunk):
        index, query = queries.arrays(slice(start, min(start + chunk, queries.count)))
        at = torch.from_numpy(index).to(lr.device)
        out.append(model.decode(tuple(m.index_select(0, at) for m in maps), torch.from_numpy(query).to(lr.device)))
    return torch.cat(out)


@dataclass(frozen=True)
class Score:
    """Metrics of an image, or their means.

    psnr, lr_psnr: dB; ssim: up to 1
    """

    psnr: float
    ssim: float
    lr_psnr: float


METRICS = tuple(Score.__dataclass_fields__)


def psnr(hr: Tensor, scale: float, upscale: Upscaler, degrade: Degrade | None = None) -> float:
    """PSNR in dB of one HR image, float [3, H, W] in [0, 1], at one scale; degrade: what happens to its LR frame."""
    return _psnr(_super_resolved(hr, scale, upscale, degrade), hr)


def score(hr: Tensor, scale: float, upscale: Upscaler, degrade: Degrade | None = None) -> Score:
    """All metrics of one HR image, float [3, H, W] in [0, 1], at one scale.

    degrade: what happens to its LR frame; LR-PSNR then has no meaning and is NaN
    """
    sr = _super_resolved(hr, scale, upscale, degrade)
    if degrade is not None:
        return Score(_psnr(sr, hr), _ssim(sr, hr), float("nan"))
    lr = degradation.lr_shape((hr.shape[1], hr.shape[2]), scale)
    lr_psnr = _psnr(degradation.bicubic(sr, lr), degradation.bicubic(hr, lr))
    return Score(_psnr(sr, hr), _ssim(sr, hr), lr_psnr)


def _super_resolved(hr: Tensor, scale: float, upscale: Upscaler, degrade: Degrade | None) -> Tensor:
    shape = (hr.shape[1], hr.shape[2])
    lr = degradation.reduce(hr, degradation.lr_shape(shape, scale))
    return upscale(degrade(lr) if degrade else lr, shape).clamp(0, 1)


def _psnr(image: Tensor, reference: Tensor) -> float:
    return float(peak_signal_noise_ratio(image, reference, data_range=1.0))


def _ssim(image: Tensor, reference: Tensor) -> float:
    """SSIM over the pixels whose window lies in the image (Wang et al., IEEE TIP 2004, equation 13).

    As torchmetrics up to 0.9 gave it: today's counts the border too. Separable windows make it several times faster
    than torchmetrics'.
    """
    if min(image.shape[1:]) <= 2 * SSIM_BORDER:
        return float("nan")

    def mean(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        window = (2 * SSIM_BORDER + 1, 2 * SSIM_BORDER + 1)
        blurred = np.asarray(cv2.GaussianBlur(values, window, SSIM_SIGMA), np.float64)
        return blurred[SSIM_BORDER:-SSIM_BORDER, SSIM_BORDER:-SSIM_BORDER]

    a, b = (planes.permute(1, 2, 0).double().cpu().numpy() for planes in (image, reference))
    mean_a, mean_b = mean(a), mean(b)
    variances = mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    means = (2 * mean_a * mean_b + SSIM_C1) / (mean_a**2 + mean_b**2 + SSIM_C1)
    return float(np.mean(means * (2 * covariance + SSIM_C2) / (variances + SSIM_C2)))
