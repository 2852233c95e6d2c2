"""What ``denoise="auto"`` costs: time beside a frame's, error on known noise, and what it loses on clean frames."""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.geometry.grid import Size
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.noise.estimator import LOOK_FRAMES
from diinn.runtime.noise.strength import Strength
from diinn.runtime.sources import demo
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util.command_line import Parser
from diinn.train import degradation
from diinn.train.photographs import find_images, read_rgb
from rich import box
from rich.console import Console
from rich.table import Table
from torchmetrics.functional.image import peak_signal_noise_ratio

CASES: tuple[tuple[Size, Size], ...] = (((160, 120), (640, 480)), ((640, 480), (1280, 960)))
NOISES = tuple(f"{kind}:{level}" for kind in ("noise", "camera") for level in (2, 5, 10, 15, 20))
CODECS = tuple(f"jpeg:{quality}" for quality in (95, 85, 70, 55))
SCALE = 2.0
WORST = 5


def times(resolver: SuperResolver, rounds: int) -> Iterator[tuple[Size, Size, float, float]]:
    """Frame and output (width, height), milliseconds of an estimate and of a frame: medians, taking turns."""
    for lr, out in CASES:
        frame = demo.frame(3.0, lr)
        works: tuple[Callable[[], object], ...] = (
            partial(resolver.estimate, frame),
            partial(resolver.resize, frame, out, denoise=5),
        )
        found: list[list[float]] = [[], []]
        for number in range(rounds + 2):
            for kept, work in zip(found, works, strict=True):
                began = time.perf_counter()
                work()
                if number >= 2:  # warm
                    kept.append((time.perf_counter() - began) * 1e3)
        yield lr, out, statistics.median(found[0]), statistics.median(found[1])


def halved(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """(HR, LR at ``SCALE``) of a photograph, float [3, H, W]."""
    hr = degradation.to_float(torch.from_numpy(read_rgb(path))).permute(2, 0, 1)
    return hr, degradation.reduce(hr, degradation.lr_shape((hr.shape[1], hr.shape[2]), SCALE))


def as_frame(lr: torch.Tensor) -> UInt8:
    """An LR tensor [3, h, w] as a frame, uint8 [h, w, 3] BGR."""
    return np.ascontiguousarray((lr.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8))


def errors(resolver: SuperResolver, files: Sequence[Path]) -> Table:
    """Median, and 9 of 10, of the absolute error under each degradation: of noise, or of compression."""
    out = Table("frames", "of", "median error", "90 %", box=box.MARKDOWN)
    for name in ("clean", *NOISES, *CODECS):
        degraded = degradation.Degradation.parse(name)
        truth, gaps = Strength(*degraded.strength), []
        for seed, path in enumerate(files):
            found = resolver.estimate(as_frame(degraded.of(halved(path)[1], seed)))
            gaps.append((abs(found.noise - truth.noise), abs(found.compression - truth.compression)))
        which = int(name in CODECS)
        values = np.array(gaps)[:, which]
        what = ("noise", "compression")[which]
        out.add_row(name, what, f"{np.median(values):.2f}", f"{np.quantile(values, 0.9):.2f}")
    return out


def clean(resolver: SuperResolver, files: Sequence[Path]) -> tuple[float, list[tuple[float, str, Strength]]]:
    """What auto gains on clean frames over 0, dB: the mean, and (gain, image, estimate) from the worst on."""
    rows = []
    for path in files:
        hr, lr = halved(path)
        frame = as_frame(lr)
        estimate = resolver.estimate(frame)
        both = []
        for strength in (estimate, Strength()):
            sr = resolver.resize(frame, (hr.shape[2], hr.shape[1]), denoise=strength, dtype=np.float32)
            planes = torch.from_numpy(np.ascontiguousarray(sr[..., ::-1])).permute(2, 0, 1)
            both.append(float(peak_signal_noise_ratio(planes.clamp(0, 1), hr, data_range=1.0)))
        rows.append((both[0] - both[1], path.stem, estimate))
    return float(np.mean([gain for gain, _, _ in rows])), sorted(rows, key=lambda row: row[0])


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench denoise", description=__doc__)
    top.add_argument("model", nargs="*", default=bundles.shipped(), help="bundles with a dial (default: the shipped)")
    top.add_argument("--data", type=Path, nargs="+", default=[], metavar="FOLDER", help="photographs to measure on")
    top.add_argument("--provider", help="cpu (the default), or openvino where that is faster")
    top.add_argument("--rounds", type=int, default=30, metavar="N", help="frames timed (default: 30)")
    return top


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    files = find_images(*args.data) if args.data else []
    console = Console(width=120)
    for model in args.model:
        with SuperResolver.open(model, backend="onnxruntime", provider=args.provider or "cpu") as resolver:
            resolver.dial.estimator()
            print(resolver.backend.describe())
            for lr, dsize, estimate, whole in times(resolver, max(1, args.rounds)):
                print(
                    f"{resolver.bundle.name} {lr[0]}x{lr[1]} -> {dsize[0]}x{dsize[1]}: estimate {estimate:.2f} ms, "
                    f"frame {whole:.1f} ms: {100 * estimate / whole:.1f} % of one that is looked at, "
                    f"{100 * estimate / (LOOK_FRAMES * whole):.1f} % of a camera's frames"
                )
            if files:
                console.print(errors(resolver, files))
                mean, rows = clean(resolver, files)
                print(f"Clean frames, x{SCALE:g}: auto gains {mean:+.3f} dB over 0; the worst:")
                for gain, name, strength in rows[:WORST]:
                    print(f"  {name}: {gain:+.2f} dB, estimate {strength}")
    return 0
