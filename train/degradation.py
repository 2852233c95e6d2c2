"""How an LR frame is made from an HR one (the protocol every score of this project is measured under)."""

import torch
import torch.nn.functional as F
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
