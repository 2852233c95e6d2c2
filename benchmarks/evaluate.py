"""``diinn-eval``: PSNR of checkpoints and bundles beside bicubic, under the protocol it prints."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diinn.runtime.command import Parser, guarded
from diinn.runtime.errors import InputError
from diinn.runtime.resolver import SuperResolver
from diinn.train import checkpoint, data, degradation, protocol
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor


@dataclass(frozen=True)
class Score:
    """PSNR in dB of one image at one scale: of the model and of bicubic."""

    image: str
    scale: float
    model: float
    bicubic: float


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-eval", description=__doc__)
    top.add_argument("model", help="a checkpoint, a bundle, or the name of a shipped model")
    top.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="sets of HR images")
    top.add_argument("--scales", type=float, nargs="+", default=[2.0, 3.0, 4.0], metavar="S", help="default: 2 3 4")
    top.add_argument("--per-image", action="store_true", help="list every image")
    top.add_argument("--json", type=Path, metavar="FILE", help="write the quality card there")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 for bad input, 1 for a failure while running."""
    args = parser().parse_args(argv)
    return guarded("diinn-eval", "pip install 'diinn[train,export]'", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write the card."""
    bad = [s for s in args.scales if not 1 <= s <= 64]
    if bad:
        raise InputError(f"scale {bad[0]:g} is not a number from 1 to 64")
    names = [folder.resolve().name for folder in args.data]
    if len(set(names)) < len(names):
        raise InputError(f"two folders of --data are called the same: {', '.join(sorted(names))}; rename one")
    if args.json is not None and not args.json.parent.is_dir():
        raise InputError(f"cannot write --json {str(args.json)!r}: no such folder")
    console = Console(width=110)
    print(f"Protocol: {protocol.PROTOCOL}.")
    with open_upscaler(args.model) as upscale:
        sets = {n: evaluate(upscale, f, args.scales, console) for n, f in zip(names, args.data, strict=True)}
    columns = [f"×{s:g}" for s in args.scales]
    table = Table("set", "images", "method", *columns, box=box.MARKDOWN)
    for name, scores in sets.items():
        count = str(len({s.image for s in scores}))
        for method in ("bicubic", "model"):
            means = [_mean(scores, scale, method) for scale in args.scales]
            table.add_row(name, count, method, *(f"{m:.2f}" for m in means))
    console.print(table)
    if args.per_image:
        for name, scores in sets.items():
            for s in scores:
                print(f"{name}/{s.image} x{s.scale:g}: {s.model:.3f} dB, bicubic {s.bicubic:.3f}")
    lost = [(name, s) for name, scores in sets.items() for s in scores if s.model < s.bicubic]
    print(f"Below bicubic: {len(lost)} of {sum(map(len, sets.values()))} (image, scale) pairs.")
    for name, s in lost:
        print(f"  {name}/{s.image} x{s.scale:g}: {s.model:.3f} dB, bicubic {s.bicubic:.3f}")
    if args.json is not None:
        args.json.write_text(json.dumps(card(sets, args.scales), indent=1) + "\n", encoding="utf-8")
    return 0


@contextmanager
def open_upscaler(model: str) -> Iterator[protocol.Upscaler]:
    """A checkpoint in PyTorch, or a bundle in the runtime, as something that makes SR from LR."""
    if Path(model).is_file():
        loaded = checkpoint.load(Path(model)).model

        def in_torch(lr: Tensor, shape: tuple[int, int]) -> Tensor:
            return protocol.super_resolve(loaded, lr, shape)

        yield in_torch
        return
    with SuperResolver.open(model) as resolver:

        def in_runtime(lr: Tensor, shape: tuple[int, int]) -> Tensor:
            frame = (lr.permute(1, 2, 0).numpy()[..., ::-1] * 255).round().astype(np.uint8)
            sr = resolver.resize(frame, shape[::-1], dtype=np.float32)
            return torch.from_numpy(np.ascontiguousarray(sr[..., ::-1])).permute(2, 0, 1)

        yield in_runtime


def evaluate(
    upscale: protocol.Upscaler, folder: Path, scales: Sequence[float], console: Console | None = None
) -> list[Score]:
    """Every image of ``folder`` at every scale."""
    files = data.find_images(folder)
    shown = track(files, folder.name, console=console, transient=True) if console and console.is_terminal else files
    scores = []
    for path in shown:
        hr = degradation.to_float(torch.from_numpy(data.read_rgb(path))).permute(2, 0, 1)
        for scale in scales:
            ours = protocol.psnr(hr, scale, upscale)
            scores.append(Score(path.stem, scale, ours, protocol.psnr(hr, scale, protocol.bicubic_upscaler)))
    return scores


def card(sets: dict[str, list[Score]], scales: Sequence[float]) -> dict[str, Any]:
    """The quality card of a bundle: protocol, means, and a line for people."""
    means = {
        name: {f"x{scale:g}": {m: round(_mean(scores, scale, m), 3) for m in ("model", "bicubic")} for scale in scales}
        for name, scores in sets.items()
    }
    first = next(iter(means))
    line = " / ".join(f"{means[first][f'x{scale:g}']['model']:.2f}" for scale in scales)
    scale_names = "/".join(f"x{scale:g}" for scale in scales)
    return {"protocol": protocol.PROTOCOL, "psnr_db": means, "summary": {f"{first} {scale_names}": f"{line} dB"}}


def _mean(scores: Sequence[Score], scale: float, method: str) -> float:
    return float(np.mean([getattr(s, method) for s in scores if s.scale == scale]))


if __name__ == "__main__":
    sys.exit(main())
