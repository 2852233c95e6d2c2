"""``python export/to_trt.py CKPT|BUNDLE``: ``diinn-export``, where a checkpoint is given, then ``diinn-build``.

Without TensorRT or a GPU it makes everything up to the engines and prints what to run where.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.cli import build
from diinn.runtime.errors import InputError
from diinn.runtime.util.command_line import Parser


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="to_trt.py", description=__doc__)
    top.add_argument(
        "model", metavar="CKPT|BUNDLE", help="a checkpoint, a NAME.diinn folder, or a shipped model's name"
    )
    top.add_argument("--out", type=Path, metavar="NAME.diinn", help="the bundle of a checkpoint (default: beside it)")
    top.add_argument("--licence", default="unspecified", metavar="TEXT", help="terms of a checkpoint's weights")
    top.add_argument("--calib", type=Path, metavar="DIR", help="your images, to make int8 graphs with; writes --out")
    build.add_options(top)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, 2 for bad input or a missing engine that was required, 1 for a failure."""
    args = parser().parse_args(argv)
    return build.run_command("to_trt", "pip install 'diinn[cpu,export]'", args, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Make the bundle, then its engines."""
    from diinn.export import to_onnx

    build.check(args)  # before an export, which takes its time
    if args.calib is not None and Path(args.model).is_file():
        to_onnx.check_images(args.calib)
    path = _bundle(args)
    if args.calib is not None:
        path = to_onnx.add_int8(path, args.calib, args.out)
    return build.run(args, path, _fp32_layers)


def _fp32_layers(graph: Path) -> list[str]:
    from diinn.export import fp16_graph

    return fp16_graph.kept_full(graph)


def _bundle(args: argparse.Namespace) -> Path:
    """The bundle given, or made of the checkpoint given."""
    path = Path(args.model)
    if not path.is_file():
        if args.out is not None and args.calib is None:
            raise InputError(f"--out is for checkpoints: {args.model!r} is a bundle, and engines go to the cache")
        return bundles.find(args.model)
    from diinn.export import writer

    done = writer.export(path, args.out, licence=args.licence)
    worst = max(max(row.runtime, row.engine) for row in done.rows)
    print(f"{done.path}: written; differs from PyTorch by {worst:.1e} at most")
    return done.path


if __name__ == "__main__":
    sys.exit(main())
