"""How an LR frame is made from an HR one, and how it is degraded.

The reduction is that of the protocol every score of this project is measured under; degradations are those of sensors
(``runtime/noise/sensor_noise.py``), lenses and codecs. Levels of noise are root mean squares over a frame, in grey
levels of 255.
"""

import re
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from diinn.runtime.errors import InputError
from diinn.runtime.noise.sensor_noise import LUMA, Float32, blurred, sensor_noise
from diinn.train.config import DegradeConfig
from torch import Tensor

NONE = (0.0, 0.0)  # strength of a frame as the protocol makes it: (noise, compression)
SEED = 20261125  # of degradations that are measured
CODEC_GRID = 8  # pixels along a side of a codec's blocks
SAMPLINGS = (  # of chroma; the first is what nearly all cameras and OpenCV write
    *(3 * (cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,)),
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)


def bicubic(image: Tensor, shape: tuple[int, int]) -> Tensor:
    """Antialiased bicubic (a = -0.5) to ``shape`` (height, width); float [..., C, H, W] in and out."""
    return _interpolated(image, shape, "bicubic")


def _interpolated(image: Tensor, shape: tuple[int, int], mode: str) -> Tensor:
    flat = image.unsqueeze(0) if image.dim() == 3 else image
    if mode == "area":
        out = F.adaptive_avg_pool2d(flat, shape)
    else:
        out = F.interpolate(flat, size=shape, mode=mode, align_corners=False, antialias=True)
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


def white_noise(shape: tuple[int, ...], level: float, rng: np.random.Generator) -> Float32:
    """Noise that is independent in every value, units of [0, 1]; level: standard deviation in grey levels."""
    return rng.standard_normal(shape, np.float32) * np.float32(level / 255)


def uint8(rgb: Float32) -> npt.NDArray[np.uint8]:
    """Rounded and clamped; [0, 1] to 0 to 255."""
    levels: npt.NDArray[np.uint8] = np.clip(np.rint(rgb * np.float32(255)), 0, 255).astype(np.uint8)
    return levels


def jpeg(rgb: npt.NDArray[np.uint8], quality: int, sampling: int = SAMPLINGS[0]) -> npt.NDArray[np.uint8]:
    """uint8 RGB [H, W, 3] through OpenCV's JPEG codec; sampling: of chroma, an ``IMWRITE_JPEG_SAMPLING_FACTOR``."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(rgb[..., ::-1]), options)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]


@dataclass(frozen=True)
class Degradation:
    """A degradation that models are measured under.

    Written as ``noise:5`` (white) and ``camera:5`` (a sensor's), both in grey levels, ``jpeg:85`` (quality),
    ``blur:0.6`` (a gaussian, LR pixels), ``clean``; joined by ``+``. Applied in the order of the fields.
    """

    name: str
    blur: float = 0
    noise: float = 0
    camera: float = 0
    quality: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Degradation":
        """A degradation from its text; InputError for what is none."""
        values: dict[str, float] = {}
        kinds = {"noise": (0, 100), "camera": (0, 100), "jpeg": (1, 100), "blur": (0, 10)}
        for part in [] if text == "clean" else text.split("+"):
            kind, _, number = part.partition(":")
            if kind not in kinds or kind in values or not re.fullmatch(r"\d+(\.\d+)?", number):
                raise InputError(
                    f"degradation {text!r} is not understood: give clean, noise:LEVEL, camera:LEVEL (grey levels), "
                    "jpeg:QUALITY, blur:PIXELS, or several joined by +"
                )
            low, high = kinds[kind]
            values[kind] = float(number)
            if not low <= values[kind] <= high or (kind == "jpeg" and values[kind] % 1):
                raise InputError(
                    f"degradation {text!r}: {kind} is {'a whole number ' * (kind == 'jpeg')}{low} to {high}"
                )
        quality = values.pop("jpeg", None)
        return cls(text, quality=None if quality is None else int(quality), **values)

    @property
    def strength(self) -> tuple[float, float]:
        """(noise, compression), as a network with a dial is given it."""
        return float(np.hypot(self.noise, self.camera)), 0.0 if self.quality is None else 100.0 - self.quality

    def of(self, lr: Tensor, seed: int) -> Tensor:
        """``lr``, float [3, H, W] RGB in [0, 1], degraded; the same for the same seed."""
        if self.name == "clean":
            return lr
        rng = np.random.default_rng((SEED, seed))
        rgb = np.ascontiguousarray(lr.permute(1, 2, 0).cpu().numpy())
        noisy = blurred(rgb, self.blur)
        if self.noise:
            noisy = noisy + white_noise(rgb.shape, self.noise, rng)
        if self.camera:
            noisy = noisy + sensor_noise(rgb, self.camera, rng)
        levels = uint8(noisy)
        if self.quality is not None:
            levels = jpeg(levels, self.quality)
        return to_float(torch.from_numpy(levels.copy())).permute(2, 0, 1).to(lr.device)


def degrade(
    hr: Tensor,
    shape: tuple[int, int],
    options: DegradeConfig,
    rng: np.random.Generator,
    whole: Float32 | None = None,
    *,
    phases: int = CODEC_GRID,
) -> tuple[Tensor, Tensor, tuple[float, float]]:
    """(HR, LR, strength) of a training patch, at random as ``options`` say; HR changes where the camera has no colour.

    hr: float [3, H, W], RGB in [0, 1]; shape: (height, width) of the LR patch, uint8 levels
    whole: float32 [h, w, 3], a sample of the frame that ``hr`` is a part of: strengths are those of whole frames
    phases: pixels at which a codec's grid may begin, 1 for the first alone
    strength: (noise, compression)
    """
    if rng.random() < options.clean:
        return hr, reduce(hr, shape), NONE
    grey = rng.random() < options.grey
    if grey:
        hr = (hr * torch.from_numpy(LUMA)[:, None, None]).sum(0, keepdim=True).expand(3, -1, -1)
        whole = None if whole is None else np.repeat((whole @ LUMA)[..., None], 3, -1)
    lr = _optics(hr, shape, options, rng) if rng.random() < options.optics else reduce(hr, shape)
    rgb = np.ascontiguousarray(lr.permute(1, 2, 0).numpy())
    compressed = rng.random() < options.compressed
    level = 0.0
    if not compressed or rng.random() < options.noisy:
        low, high = options.noise
        level = low + (high - low) * rng.random() ** 1.5  # the lower ones more often
        if rng.random() < options.white:
            noise = white_noise(rgb.shape if not grey else (*rgb.shape[:2], 1), level, rng)
        else:
            noise = sensor_noise(rgb, level, rng, whole, grey=grey)
        rgb = rgb + noise
    levels = uint8(rgb)
    quality = 100
    if compressed:
        quality = int(rng.integers(options.jpeg[0], options.jpeg[1] + 1))
        top, left = (int(n) for n in rng.integers(phases, size=2))
        padded = np.asarray(cv2.copyMakeBorder(levels, top, 0, left, 0, cv2.BORDER_REFLECT_101), np.uint8)
        levels = jpeg(padded, quality, SAMPLINGS[int(rng.integers(len(SAMPLINGS)))])[top:, left:]
    return hr, to_float(torch.from_numpy(levels.copy())).permute(2, 0, 1), (level, 100.0 - quality)


def inexact(strength: tuple[float, float], options: DegradeConfig, rng: np.random.Generator) -> tuple[float, float]:
    """``strength`` as a network in training is given it: a little wrong, as an estimate is."""
    noise, compression = strength
    if strength == NONE:
        return (float(abs(rng.normal(0, 0.5))) if rng.random() < 0.3 else 0.0), 0.0
    noise = noise * float(np.exp(rng.normal(0, options.jitter))) + rng.normal(0, 0.3)
    compression += rng.normal(0, 3) if compression else 0.0
    return max(0.0, noise), max(0.0, compression)


def _optics(hr: Tensor, shape: tuple[int, int], options: DegradeConfig, rng: np.random.Generator) -> Tensor:
    """LR as a lens, another reduction and an ISP's sharpening leave it, float in [0, 1]."""
    sigma = rng.uniform(*options.blur)
    pixels = np.ascontiguousarray(hr.permute(1, 2, 0).numpy())
    soft = blurred(pixels, sigma * hr.shape[1] / shape[0])
    mode = ("area", "bilinear", "bicubic")[int(rng.integers(3))]
    lr = _interpolated(torch.from_numpy(soft).permute(2, 0, 1), shape, mode)
    rgb = np.ascontiguousarray(lr.permute(1, 2, 0).numpy())
    sharp = rgb + np.float32(rng.uniform(*options.sharpen)) * (rgb - blurred(rgb, 1.0))
    return quantise(torch.from_numpy(sharp).permute(2, 0, 1))
