"""The paper's Figure 4 for any image: a reduced patch at growing scales (rows), by bicubic and models (columns)."""

import argparse
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from diinn.benchmarks import scores
from diinn.benchmarks.evaluate import label
from diinn.benchmarks.tables import method
from diinn.runtime.errors import InputError
from diinn.runtime.util.command_line import Parser, check_output
from diinn.train import degradation, protocol
from diinn.train.photographs import read_rgb
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

REDUCTION = 2 * math.pi  # the paper's
SCALES = (1.0, 2.0, 4.0, 6.28)


def patch(image: Tensor, rect: Sequence[int] | None) -> Tensor:
    """The part (x, y, width, height) of an HR image [3, H, W], or its central square of up to 256 pixels."""
    height, width = image.shape[1:]
    if rect is None:
        side = min(height, width, 256)
        rect = ((width - side) // 2, (height - side) // 2, side, side)
    x, y, w, h = rect
    if x < 0 or y < 0 or w < 16 or h < 16 or x + w > width or y + h > height:
        raise InputError(f"--rect {x},{y},{w},{h} is not 16 pixels or more inside the {width}x{height} image")
    return image[:, y : y + h, x : x + w]


def draw(
    lr: Tensor, methods: dict[str, protocol.Upscaler], scales: Sequence[float], path: Path, hr: Tensor | None = None
) -> None:
    """Write the figure: every method's result of ``lr`` [3, h, w] at every scale, and the truth beside it."""
    columns = len(methods) + (hr is not None)
    figure = Figure(figsize=(2.4 * columns, 2.6 * len(scales)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(scales), columns, squeeze=False)
    for row, scale in zip(grid, scales, strict=True):
        shape = (round(lr.shape[1] * scale), round(lr.shape[2] * scale))
        panels = {name: upscale(lr, shape) for name, upscale in methods.items()}
        if hr is not None:
            panels["truth"] = degradation.bicubic(hr, shape)
        for axes, (name, panel) in zip(row, panels.items(), strict=True):
            axes.imshow(panel.clamp(0, 1).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_title(f"{name}\n{shape[1]}x{shape[0]}", fontsize=9)
            axes.set_axis_off()
    figure.savefig(path, dpi=130)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench figure4", description=__doc__)
    top.add_argument("image", type=Path, metavar="IMAGE", help="an HR image")
    top.add_argument("--model", nargs="+", default=["small"], help="checkpoints, bundles or shipped models, in order")
    top.add_argument("--rect", metavar="X,Y,W,H", help="the part of the image (default: its middle, up to 256x256)")
    top.add_argument("--reduce", type=float, default=REDUCTION, metavar="S", help="how the LR patch is made (2 pi)")
    top.add_argument("--scales", type=float, nargs="+", default=list(SCALES), metavar="S", help="default: 1 2 4 6.28")
    top.add_argument("--out", type=Path, default=Path("figure4.png"), metavar="FILE.png")
    return top


def run(args: argparse.Namespace) -> int:
    """Reduce, super-resolve, draw."""
    check_output(args.out, ".png")
    for scale in (args.reduce, *args.scales):
        if not 1 <= scale <= 64:
            raise InputError(f"scale {scale:g} is not a number from 1 to 64")
    try:
        rect = None if args.rect is None else [int(v) for v in args.rect.split(",")]
        if rect is not None and len(rect) != 4:
            raise ValueError
    except ValueError:
        raise InputError(f"--rect {args.rect} is not four whole numbers x,y,w,h") from None
    hr = patch(degradation.to_float(torch.from_numpy(read_rgb(args.image))).permute(2, 0, 1), rect)
    lr = degradation.reduce(hr, degradation.lr_shape((hr.shape[1], hr.shape[2]), args.reduce))
    with ExitStack() as stack:
        methods: dict[str, protocol.Upscaler] = {scores.BICUBIC: protocol.bicubic_upscaler}
        for model, name in zip(args.model, label(args.model), strict=True):
            methods[f"{method(scores.architecture(model))}, {name}"] = stack.enter_context(scores.open_upscaler(model))
        draw(lr, methods, args.scales, args.out, hr)
    print(f"{args.out}: {lr.shape[2]}x{lr.shape[1]} reduced by {args.reduce:.2f}, at scales {args.scales}")
    return 0
