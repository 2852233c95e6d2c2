"""The noise of a camera's sensor, as its frames show it: for the demo camera, and to train with.

It is made where it arises: shot noise (its variance goes with the light) and read noise in linear light, one colour a
pixel; white balance, demosaicing, the colour matrix, the tone curve and the camera's own noise reduction turn it into
noise that is correlated, coloured and stronger in shadows (Foi et al., IEEE TIP 2008, for the first two; Brooks et al.,
"Unprocessing Images for Learned Raw Denoising", CVPR 2019, for the ranges of gains and the idea).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Sensor:
    """A sensor, and what its camera makes of its noise.

    The ranges that ``draw`` draws from: gains, a little wider than Brooks et al. took them; a matrix from none to one
    of a phone's strength; read noise from next to none to as much as the shot noise of a tenth of white. Noise
    reduction is as much as makes a Laplacian read a sixth of the noise's level (0.06 to 0.23 over a dozen sensors
    drawn): of frames of real cameras it read 0.15.

    read: read noise over the shot noise of a tenth of white; gains: of white balance, (R, G, B)
    matrix: [3, 3] from the sensor's colours to sRGB's; phase: row and column of the first red pixel
    luma, chroma: standard deviation of the gaussians that the camera's noise reduction amounts to, pixels
    """

    read: float
    gains: Float32
    matrix: Float32
    phase: tuple[int, int]
    luma: float
    chroma: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Sensor:
        """One at random."""
        typical = np.array([[1.7, -0.6, -0.1], [-0.25, 1.55, -0.3], [0.0, -0.6, 1.6]], np.float32)
        mix = np.float32(rng.uniform(0, 1))
        luma = 0.0 if rng.random() < 0.35 else float(rng.uniform(0.3, 1.6))
        return cls(
            read=float(rng.uniform(0.1, 1.0)),
            gains=np.array([rng.uniform(1.4, 2.4), 1, rng.uniform(1.4, 2.1)], np.float32),
            matrix=mix * typical + (1 - mix) * np.eye(3, dtype=np.float32),
            phase=(int(rng.integers(2)), int(rng.integers(2))),
            luma=luma,
            chroma=luma + float(rng.uniform(0, 2)),
        )

    def amplitude(self, rgb: Float32) -> Float32:
        """Relative standard deviation of each value's noise under the tone curve, [..., 3] from RGB in [0, 1]."""
        linear = np.maximum(rgb, 0) ** np.float32(2.2)
        shot = self.gains * linear + self.gains**2 * np.float32(0.1 * self.read**2)
        slope = np.maximum(linear, np.float32(0.01)) ** np.float32(1 / 2.2 - 1)
        found: Float32 = np.sqrt(shot) * slope
        return found

    def noise(self, rgb: Float32, rng: np.random.Generator) -> Float32:
        """Noise [H, W, 3] of a frame, float32 RGB in [0, 1], of no particular level."""
        raw = self.amplitude(rgb) * rng.standard_normal(rgb.shape, np.float32)
        row, col = self.phase
        mosaic = np.zeros_like(raw)
        mosaic[row::2, col::2, 0] = raw[row::2, col::2, 0]
        mosaic[row::2, 1 - col :: 2, 1] = raw[row::2, 1 - col :: 2, 1]
        mosaic[1 - row :: 2, col::2, 1] = raw[1 - row :: 2, col::2, 1]
        mosaic[1 - row :: 2, 1 - col :: 2, 2] = raw[1 - row :: 2, 1 - col :: 2, 2]
        # Bilinear demosaicing is linear, so the noise passes it alone, and the frame keeps its sharpness.
        cross = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]], np.float32) / 4
        square = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]], np.float32) / 4
        planes = [cv2.filter2D(mosaic[..., c], -1, kernel) for c, kernel in enumerate((square, cross, square))]
        noise: Float32 = np.stack(planes, -1) @ self.matrix.T
        luma: Float32 = (noise @ LUMA)[..., None]
        return blurred(luma, self.luma) + blurred(noise - luma, self.chroma)


def blurred(image: Float32, sigma: float) -> Float32:
    """Convolved with a gaussian of standard deviation ``sigma``, pixels; [H, W, C] in and out."""
    if sigma < 0.1:  # changes nothing
        return image
    found = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)
    return found.reshape(image.shape)


def sensor_noise(
    rgb: Float32,
    level: float,
    rng: np.random.Generator,
    whole: Float32 | None = None,
    *,
    grey: bool = False,
    sensor: Sensor | None = None,
) -> Float32:
    """Noise [H, W, 3] of a sensor, one drawn at random unless given, units of [0, 1].

    rgb: float32 [H, W, 3] in [0, 1], a frame or a part of one
    level: root mean square over the frame that ``whole`` samples (default: over ``rgb``), grey levels
    grey: the same in all three channels, as of a camera without colour
    """
    sensor = sensor or Sensor.draw(rng)
    noise = sensor.noise(rgb, rng)
    if grey:
        noise = np.repeat((noise @ LUMA)[..., None], 3, -1)
    share = 1.0 if whole is None else _rms(sensor.amplitude(rgb)) / _rms(sensor.amplitude(whole))
    return noise * np.float32(level / 255 * share / max(_rms(noise), 1e-9))


def _rms(values: Float32) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
