"""Frames as users give them and as networks take them: arrays alone, no files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from diinn.runtime.errors import InputError

UInt8 = npt.NDArray[np.uint8]
Image = npt.NDArray[Any]  # [H, W, 3] BGR, uint8 or float32 in units of [0, 1]


def as_bgr(frame: Image) -> Image:
    """A frame as [H, W, 3] BGR, uint8 or float32; InputError names what cannot be used."""
    if not isinstance(frame, np.ndarray):
        raise InputError(f"a frame is a numpy array, got {type(frame).__name__}")
    if frame.dtype not in (np.uint8, np.float32):
        raise InputError(f"a frame is uint8, or float32 in [0, 1], got {frame.dtype}: convert it first")
    if frame.ndim == 3 and frame.shape[2] == 4:
        raise InputError("a frame with alpha (BGRA) is not super-resolved: drop it with frame[..., :3]")
    if frame.ndim == 3 and frame.shape[2] == 1:
        frame = frame[..., 0]
    if frame.ndim == 2:
        frame = np.repeat(frame[..., None], 3, axis=2)
    if frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise InputError(f"a frame is [height, width, 3] BGR or [height, width] grey, got {list(frame.shape)}")
    return frame


def planar_rgb(frame: Image, levels: Sequence[float] = ()) -> npt.NDArray[np.float32]:
    """[H, W, 3] BGR, uint8 or float32 in [0, 1], to the encoder's input, float32 [1, 3 + n, H, W].

    That is RGB in [0, 1], then a constant plane for each of n ``levels``.
    """
    planar = np.empty((1, 3 + len(levels), *frame.shape[:2]), np.float32)
    rgb = frame[..., ::-1].transpose(2, 0, 1)
    np.multiply(rgb, np.float32(1 / 255 if frame.dtype == np.uint8 else 1), out=planar[0, :3], casting="unsafe")
    for plane, level in zip(planar[0, 3:], levels, strict=True):
        plane[...] = level
    return planar


def as_dtype(frame: Image, dtype: np.dtype[Any]) -> Image:
    """A frame as uint8, rounded and clamped, or as float32 in units of [0, 1]."""
    if frame.dtype == dtype:
        return frame
    if dtype == np.uint8:
        return np.clip(np.rint(frame * np.float32(255)), 0, 255).astype(np.uint8)
    return np.asarray(frame, np.float32) / np.float32(255)
