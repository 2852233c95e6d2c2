"""``python export/to_onnx.py CKPT``: a checkpoint to the bundle a robot runs."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diinn.runtime.errors import InputError
from diinn.runtime.util.command_line import Parser, guarded


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="to_onnx.py", description=__doc__)
    top.add_argument("checkpoint", type=Path, metavar="CKPT", help="a .pth of diinn-train, or the paper's .ckpt")
    top.add_argument("--out", type=Path, metavar="NAME.diinn", help="the bundle (default: beside the checkpoint)")
    top.add_argument("--quality", type=Path, metavar="FILE.json", help="scores for its card, from diinn-eval --json")
    top.add_argument(
        "--estimator",
        type=Path,
        metavar="FILE.pth",
        help="what tells a frame's noise, for a model with a dial: from diinn-train estimator (default: the shipped)",
    )
    top.add_argument("--licence", default="unspecified", metavar="TEXT", help="terms of the weights")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 for bad input, 1 for a failure while running."""
    args = parser().parse_args(argv)
    return guarded("to_onnx", "pip install 'diinn[cpu,export]'", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Export and print the parity table."""
    from diinn.export import writer
    from diinn.runtime.bundles import bundle as bundles
    from rich.console import Console
    from rich.table import Table

    done = writer.export(
        args.checkpoint,
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
    size = sum(p.stat().st_size for p in done.path.iterdir())
    print(f"{done.path}: {size / 1e6:.2f} MB. Try: diinn-run --model {done.path} --camera demo --out-size 640x480")
    return 0


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
