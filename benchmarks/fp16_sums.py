"""What fp16 loses in PSNR, with products that accumulate in fp32 and in fp16, by emulation; no GPU is needed.

``diinn-bench fp16_sums small nano --data Set5``. A layer of fp16 tensors may accumulate in either, as TensorRT picks.
Exit code 1 where fp16 sums lose more than 0.02 dB on any image.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from diinn.export import fp16_graph, quantize, reference
from diinn.export.fp16_acceptance import Pair, loss, with_strengths
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.util.command_line import Parser
from diinn.train import protocol
from rich import box
from rich.console import Console
from rich.table import Table

LARGEST_LOSS = 0.02  # dB, of fp16 sums against fp32
SCALES = (2.0, 4.0)
HEADS = ("model", "fp32, dB", "fp16 with fp32 sums", "fp16 with fp16 sums", "worst image")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench fp16_sums", description=__doc__)
    top.add_argument("model", nargs="+", help="bundles, or names of shipped models")
    top.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="HR images")
    return top


def pairs(bundle: bundles.Bundle) -> tuple[Pair, Pair]:
    """The fp32 and the fp16 graphs, (encoder, decoder) each."""
    plain, half = (
        (onnx.load(bundle.graph("encoder", kind)), onnx.load(bundle.graph("decoder", kind)))
        for kind in ("fp32", "fp16")
    )
    return plain, half


def losses(bundle: bundles.Bundle, graphs: tuple[Pair, Pair], folder: Path, scale: float) -> np.ndarray[Any, Any]:
    """[images, 3]: PSNR in fp32, and what fp16 loses with fp32 sums and with fp16 sums, dB, on the images' middles."""
    plain, half = graphs
    models = [
        reference.Reference(*plain, bundle.layout, reference.fast),
        reference.Reference(*half, bundle.layout, reference.rounding),
        reference.Reference(*half, bundle.layout, reference.half_sums),
    ]
    rows = []
    for frame in map(torch.from_numpy, quantize.images(folder)):

        def psnr(model: reference.Reference, frame: torch.Tensor = frame) -> float:
            def upscale(lr: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
                given = with_strengths(lr.numpy(), bundle.dial)[0]
                return torch.from_numpy(model.resize(given, shape[::-1]).transpose(2, 0, 1))

            return protocol.psnr(frame, scale, upscale)

        full, *others = map(psnr, models)
        rows.append((full, *(full - other for other in others)))
    return np.array(rows)


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    out, lost = Table(*HEADS, box=box.MARKDOWN), []
    for name in args.model:
        bundle = bundles.load(name)
        graphs = pairs(bundle)
        plain, half = graphs
        arguments = half[0], fp16_graph.convert(plain[1], arguments=True)
        for what, typed in (("rms to fp32", half), ("rms, sines' arguments in fp32", arguments)):
            sums = (reference.rounding, reference.half_sums)
            rms = [loss(plain, typed, bundle.layout, bundle.dial, one) for one in sums]
            out.add_row(f"{bundle.name}, {what}", "", *(f"{value:.2e}" for value in rms), "")
        for scale in SCALES:
            found = losses(bundle, graphs, args.data, scale)
            mean = found.mean(0)
            lost.append(found[:, 2])
            figures = (f"{mean[0]:.3f}", f"{-mean[1]:+.4f}", f"{-mean[2]:+.4f}", f"{-found[:, 2].max():+.4f}")
            out.add_row(f"{bundle.name}, {args.data.name} ×{scale:g}", *figures)
    Console(width=120).print(out)
    worst = np.max(np.concatenate(lost))  # NaN where an image has it
    print(f"fp16 sums lose at most {worst:.4f} dB of an image, {LARGEST_LOSS} are allowed")
    return int(not worst <= LARGEST_LOSS)
