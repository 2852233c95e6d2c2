"""How an LR frame is made from an HR one: the protocol every score of this project is measured under, and what a
camera does, as an option of training."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from diinn.train.config import CameraConfig
from torch import Tensor


def bicubic(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Antialiased bicubic (a = -0.5) to ``shape`` (height, width); float [..., C, H, W] in and out."""
    flat = image.unsqueeze(0) if image.dim() == 3 else image
    out = F.interpolate(flat, size=shape, mode="bicubic", align_corners=False, antialias=True)
    return out.squeeze(0) if image.dim() == 3 else out


def quantise(image: Tensor) -> Tensor:
    """Rounded and clamped to the 256 levels of uint8, still float in [0, 1]."""
    return (image * 255).round().clamp(0, 255) / 255


def reduce(hr: Tensor, shape: tuple[int, int]) -> Tensor:
    """The LR frame of an HR image: bicubic to ``shape`` (height, width), then uint8 levels.

    hr: float [C, H, W] or [B, C, H, W], RGB in [0, 1]
    """
    return quantise(bicubic(hr, shape))


def lr_shape(hr_shape: tuple[int, int], scale: float) -> tuple[int, int]:
    """(round(H / s), round(W / s)), halves to even as Python rounds; at least one pixel."""
    height, width = (max(1, round(n / scale)) for n in hr_shape)
    return height, width


def to_float(image_uint8: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1]."""
    return image_uint8.to(torch.float32) / 255


def camera(
    hr: Tensor, shape: tuple[int, int], options: CameraConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """(HR, LR) as a camera would have seen it: colour on both; blur, noise and JPEG on the LR frame alone.

    hr: float [3, H, W], RGB in [0, 1]; shape: (height, width) of the LR frame, uint8 levels
    """
    gain = np.exp(rng.uniform(-options.colour, options.colour, 3)).astype(np.float32)
    hr = quantise(hr * torch.from_numpy(gain)[:, None, None])
    sigma = rng.uniform(*options.blur) * hr.shape[1] / shape[0]
    pixels = hr.permute(1, 2, 0).numpy()
    blurred = cv2.GaussianBlur(pixels, (0, 0), sigma) if sigma > 0.1 else pixels  # less than that changes nothing
    lr = bicubic(torch.from_numpy(np.asarray(blurred)).permute(2, 0, 1), shape).clamp(0, 1)
    deviation = rng.uniform(*options.noise) * torch.sqrt(lr + 0.1)  # of shot noise and a floor of read noise
    lr = lr + deviation * torch.from_numpy(rng.standard_normal(lr.shape, np.float32))
    frame = (quantise(lr) * 255).permute(1, 2, 0).byte().numpy()[..., ::-1]
    quality = int(rng.integers(options.jpeg[0], options.jpeg[1] + 1))
    _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1].copy()
    return hr, to_float(torch.from_numpy(decoded)).permute(2, 0, 1)
