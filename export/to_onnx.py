"""``diinn-export CKPT|BUNDLE``, or ``python export/to_onnx.py``: a checkpoint to the bundle a robot runs.

With ``--calib`` it adds int8 graphs, also to a bundle there is.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.errors import InputError
from diinn.runtime.util.command_line import Parser, guarded

UNSPECIFIED = "unspecified"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-export", description=__doc__)
    top.add_argument(
        "model", metavar="CKPT|BUNDLE", help="a .pth of diinn-train, the paper's .ckpt, or with --calib a bundle"
    )
    top.add_argument("--out", type=Path, metavar="NAME.diinn", help="the bundle (default: beside the checkpoint)")
    top.add_argument("--calib", type=Path, metavar="DIR", help="your images, to make int8 graphs with")
    top.add_argument("--quality", type=Path, metavar="FILE.json", help="scores for its card, from diinn-eval --json")
    top.add_argument(
        "--estimator",
        type=Path,
        metavar="FILE.pth",
        help="estimates a frame's noise, for models with a dial: from diinn-train estimator (default: the shipped)",
    )
    top.add_argument("--licence", default=UNSPECIFIED, metavar="TEXT", help="terms of the weights")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 for bad input, 1 for a failure while running."""
    args = parser().parse_args(argv)
    return guarded("diinn-export", "pip install 'diinn[cpu,export]'", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Export, print the parity table, add int8 graphs."""
    model = Path(args.model)
    if model.is_dir() or args.model in bundles.shipped():
        path = bundles.find(args.model)
        if args.calib is None:
            raise InputError(f"{args.model} is a bundle already: diinn-build makes engines, --calib DIR int8 graphs")
        if args.quality or args.estimator or args.licence != UNSPECIFIED:
            raise InputError(f"--quality, --estimator and --licence are for checkpoints: {args.model} is a bundle")
        path = add_int8(path, args.calib, args.out)
    else:
        if args.calib is not None:
            check_images(args.calib)
        path = _export(model, args)
        if args.calib is not None:
            add_int8(path, args.calib, path)
    size = sum(p.stat().st_size for p in path.iterdir())
    print(f"{path}: {size / 1e6:.2f} MB. Try: diinn-run --model {path} --camera demo --out-size 640x480")
    return 0


def _export(checkpoint: Path, args: argparse.Namespace) -> Path:
    from diinn.export import writer
    from rich.console import Console
    from rich.table import Table

    done = writer.export(
        checkpoint,
        args.out,
        quality=_card(args.quality),
        licence=args.licence,
        estimator=args.estimator or writer.ESTIMATOR,
    )
    table = Table(title="largest difference to PyTorch, units of [0, 1]")
    for head in ("LR", "output", "scale", "batch", "runtime", "engine graph"):
        table.add_column(head, justify="right")
    for row in done.rows:
        table.add_row(
            f"{row.lr[0]}x{row.lr[1]}",
            f"{row.out[0]}x{row.out[1]}",
            f"{row.scale:g}",
            str(row.batch),
            f"{row.runtime:.1e}",
            f"{row.engine:.1e}",
        )
    Console().print(table)
    half = bundles.load(done.path).measured["fp16"]
    print(f"fp16: {half['left_out']}" if "left_out" in half else f"fp16: rms difference {half['rms_to_fp32']:.1e}")
    return done.path


def check_images(folder: Path) -> None:
    """InputError for a folder without images: before the minutes of an export."""
    from diinn.export import quantize

    quantize.images(folder)


def add_int8(path: Path, folder: Path, out: Path | None) -> Path:
    """Add int8 graphs made on the images of a folder to a bundle; prints what they lose there.

    out: where the bundle with them goes, by default in its own place
    """
    import onnx
    from diinn.export import quantize, writer

    bundle = bundles.load(path)
    target = out or path
    if target.parent.resolve() == bundles.MODELS.resolve():
        raise InputError(f"--calib does not change the shipped model {bundle.name}: add --out NAME{bundles.SUFFIX}")
    frames = quantize.images(folder)
    made = writer.add_int8(bundle, frames, target)
    plain = onnx.load(bundle.graph("encoder")), onnx.load(bundle.graph("decoder"))
    times = quantize.cpu_milliseconds({"fp32": plain[0], "int8": made.plain[0]})
    print(f"{target}: {len(made.layers)} of {len(made.costs)} layers in int8, chosen on {len(frames)} images")
    for name, cost in made.costs.items():
        print(f"  {cost:.1e} rms alone, {'int8' if name in made.layers else 'fp16'}: {name}")
    lost = " and ".join(f"{loss:.3f} dB at x{scale:g}" for scale, loss in made.decibels.items())
    print(f"  it loses {lost} on your images")
    print(f"  encoder on this CPU, 160x120: {times['fp32']:.1f} ms in fp32, {times['int8']:.1f} ms in int8")
    return target


def _card(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the quality card {str(path)!r}: {error}") from None
    if not isinstance(card, dict):
        raise InputError(f"{path} is not a quality card: it holds a {type(card).__name__}")
    return card


if __name__ == "__main__":
    sys.exit(main())
