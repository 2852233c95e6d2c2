"""What evaluating on the undistorted grid gains over super-resolving first and ``cv2.remap`` after: PSNR and time.

``diinn-bench rectify --data photos/``. Each picture stands for the scene as an ideal camera sees it; a
camera with barrel distortion is simulated (Lanczos resampling at the picture's size, then the evaluation protocol's
reduction to a frame ``--scale`` times smaller), and the ideal picture is restored from that frame. Without ``--data``:
four crops of the built-in scene.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from diinn.runtime.cli.run_options import count
from diinn.runtime.errors import InputError
from diinn.runtime.geometry.calibration import Calibration, pinhole
from diinn.runtime.geometry.calibration_file import scaling
from diinn.runtime.geometry.view_spec import RECTIFY, ViewSpec
from diinn.runtime.images import files as image_files
from diinn.runtime.images import folders as searching
from diinn.runtime.images.arrays import UInt8
from diinn.runtime.sources import demo
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util.command_line import Parser
from diinn.train import degradation
from rich import box
from rich.console import Console
from rich.table import Table

DISTORTION = np.array([-0.25, 0.06, 0.0, 0.0, 0.0])
FOV = 75.0  # degrees across
MARGIN = 8  # output pixels at the borders that are not compared
DIRECT, CUBIC, LANCZOS, BICUBIC = (
    "direct",
    "resize, then remap (cubic)",
    "resize, then remap (lanczos)",
    "bicubic, direct",
)


@dataclass(frozen=True)
class Row:
    """One way: mean PSNR over the pictures, dB, all channels; median milliseconds a frame."""

    way: str
    psnr: float
    milliseconds: float


def camera(size: tuple[int, int]) -> Calibration:
    """The simulated camera with frames of ``size`` (width, height)."""
    k = pinhole(FOV, size)
    return Calibration("simulated", size, k, DISTORTION, False, np.eye(3), k)


def photographed(scene: UInt8, scale: int) -> UInt8:
    """What the camera sees of ``scene`` uint8 [H, W, 3], multiples of ``scale``: uint8 [H/scale, W/scale, 3]."""
    height, width = scene.shape[:2]
    fine = camera((width, height))
    v, u = np.mgrid[0:height, 0:width]
    focal, middle = fine.k[0, 0], fine.k[:2, 2]
    bent = np.stack([u - middle[0], v - middle[1]], -1) / focal
    straight = bent.copy()
    for _ in range(60):  # straight · (1 + k1 r² + k2 r⁴) = bent, by fixed point
        r2 = (straight**2).sum(-1, keepdims=True)
        straight = bent / (1 + DISTORTION[0] * r2 + DISTORTION[1] * r2**2)
    maps = (straight * focal + middle).astype(np.float32)
    distorted = cv2.remap(scene, maps[..., 0], maps[..., 1], cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT)
    planes = degradation.to_float(torch.from_numpy(np.asarray(distorted)).permute(2, 0, 1))
    frame = degradation.reduce(planes, (height // scale, width // scale)).permute(1, 2, 0)
    return np.ascontiguousarray((frame * 255).round().to(torch.uint8).numpy())


def ways(resolver: SuperResolver, frame: UInt8, dsize: tuple[int, int]) -> tuple[dict[str, Callable[[], UInt8]], UInt8]:
    """Each way to the ideal picture at ``dsize``, and a mask [H, W], not 0 where the frame shows it."""
    size = (frame.shape[1], frame.shape[0])
    coarse = camera(size)
    view = ViewSpec(RECTIFY, dsize, calibration=coarse).view(size)
    grown = scaling(dsize[0] / size[0], dsize[1] / size[1])
    assert view.maps is not None
    map_x, map_y = (np.asarray(m, np.float32) for m in view.maps)
    # The same directions in the super-resolved frame.
    big_x = (map_x * grown[0, 0] + grown[0, 2]).astype(np.float32)
    big_y = (map_y * grown[1, 1] + grown[1, 2]).astype(np.float32)

    def direct() -> UInt8:
        return np.asarray(resolver.decode(resolver.encode([frame])[0], [view])[0], np.uint8)

    def then_remap(kind: int) -> UInt8:
        return np.asarray(cv2.remap(resolver.resize(frame, dsize), big_x, big_y, kind), np.uint8)

    inside = (map_x > 0) & (map_x < size[0] - 1) & (map_y > 0) & (map_y < size[1] - 1)
    border = np.zeros_like(inside)
    border[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    found: dict[str, Callable[[], UInt8]] = {
        DIRECT: direct,
        CUBIC: lambda: then_remap(cv2.INTER_CUBIC),
        LANCZOS: lambda: then_remap(cv2.INTER_LANCZOS4),
        BICUBIC: lambda: np.asarray(cv2.remap(frame, map_x, map_y, cv2.INTER_CUBIC), np.uint8),
    }
    return found, (inside & border).astype(np.uint8)


def compare(resolver: SuperResolver, scenes: Sequence[UInt8], scale: int) -> list[Row]:
    """Every way on every scene, in turns."""
    psnr: dict[str, list[float]] = {}
    times: dict[str, list[float]] = {}
    for scene in scenes:
        height, width = (n // scale * scale for n in scene.shape[:2])
        scene = np.ascontiguousarray(scene[:height, :width])
        entries, mask = ways(resolver, photographed(scene, scale), (width, height))
        for turn in range(3):
            for way, make in entries.items():
                began = time.perf_counter()
                picture = make()
                times.setdefault(way, []).append((time.perf_counter() - began) * 1e3)
                if not turn:
                    error = (picture.astype(np.float64) - scene)[mask > 0]
                    psnr.setdefault(way, []).append(float(10 * np.log10(255**2 / np.mean(error**2))))
    return [Row(way, statistics.mean(psnr[way]), statistics.median(times[way])) for way in psnr]


def scenes(folders: Sequence[Path], most: int) -> Iterator[UInt8]:
    """Pictures to compare on."""
    if not folders:
        whole = demo.scene()
        yield from (whole[y : y + 360, x : x + 480] for x, y in ((520, 600), (40, 900), (900, 300), (1300, 650)))
        return
    files = [path for folder in folders for path in searching.find(folder)]
    if not files:
        raise InputError(f"no image in {', '.join(map(str, folders))}: give a folder of photographs")
    for path in files[:most]:
        yield image_files.read_bgr(path)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench rectify", description=__doc__)
    top.add_argument("--model", default="small", metavar="NAME|PATH", help="default: small")
    top.add_argument("--data", type=Path, nargs="+", default=[], metavar="FOLDER", help="photographs")
    top.add_argument("--scale", type=count, default=3, metavar="S", help="how much smaller the frame is (default: 3)")
    top.add_argument("--most", type=count, default=20, metavar="N", help="of the photographs (default: 20)")
    return top


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    with SuperResolver.open(args.model) as resolver:
        pictures = list(scenes(args.data, args.most))
        rows = compare(resolver, pictures, args.scale)
        table = Table("way", "PSNR dB", "against direct", "ms a frame", box=box.MARKDOWN)
        for row in rows:
            table.add_row(row.way, f"{row.psnr:.2f}", f"{row.psnr - rows[0].psnr:+.2f}", f"{row.milliseconds:.0f}")
        print(f"{resolver.bundle.name}, {resolver.backend.describe()}, {len(pictures)} pictures, x{args.scale}\n")
        Console(width=100).print(table)
    return 0
