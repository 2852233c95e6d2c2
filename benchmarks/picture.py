"""The picture of the README: LR, bicubic and ours side by side, clean and noisy, from the scene demo.py renders."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from diinn.runtime.images import files as image_files
from diinn.runtime.sources import demo
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util.command_line import Parser

RESULTS = Path(__file__).parent / "results"
SCALE = 4
CAPTION = 26
NOISE = 10  # grey levels, of the second row


def render(model: str, time: float) -> npt.NDArray[np.uint8]:
    """Two rows of four panels, uint8 BGR: a frame's pixels enlarged, bicubic, the model with denoise 0 and with auto.

    Below the same with a noisy sensor.
    """
    with SuperResolver.open(model) as resolver:
        return np.vstack([_row(resolver, demo.frame(time, (96, 84), noise), noise) for noise in (0, NOISE)])


def _row(resolver: SuperResolver, lr: npt.NDArray[np.uint8], noise: int) -> npt.NDArray[np.uint8]:
    size = (lr.shape[1] * SCALE, lr.shape[0] * SCALE)
    panels = {
        f"input {lr.shape[1]}x{lr.shape[0]}" + f", noise {noise}" * bool(noise): cv2.resize(
            lr, size, interpolation=cv2.INTER_NEAREST
        ),
        f"bicubic x{SCALE}": cv2.resize(lr, size, interpolation=cv2.INTER_CUBIC),
        f"diinn ({resolver.bundle.name}), denoise 0": resolver.resize(lr, size),
        f"diinn ({resolver.bundle.name}), denoise auto": resolver.resize(lr, size, denoise="auto"),
    }
    return np.hstack([_captioned(image.astype(np.uint8), text) for text, image in panels.items()])


def _captioned(image: npt.NDArray[np.uint8], text: str) -> npt.NDArray[np.uint8]:
    framed = np.full((image.shape[0] + CAPTION, image.shape[1] + 6, 3), 255, np.uint8)
    framed[CAPTION:, 3:-3] = image
    cv2.putText(framed, text, (6, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (20, 20, 20), 1, cv2.LINE_AA)
    return framed


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench picture", description=__doc__)
    top.add_argument("--model", default="small", help="shipped model or bundle (default: small)")
    top.add_argument("--time", type=float, default=11.0, help="seconds into the demo camera's walk")
    top.add_argument("--out", type=Path, default=RESULTS / "picture.png", metavar="FILE.png")
    return top


def run(args: argparse.Namespace) -> int:
    """Render and write the picture."""
    image_files.write(args.out, render(args.model, args.time))
    print(args.out)
    return 0
