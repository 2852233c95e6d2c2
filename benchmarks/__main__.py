"""``diinn-bench NAME``: everything that prints a figure; ``diinn-bench`` alone lists what there is."""

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from diinn.runtime.errors import InputError, unknown
from diinn.runtime.util.command_line import Parser, guarded

# Each is a file of this folder, with a ``parser`` and a ``run``.
BENCHMARKS = {  # what pip is to install for each
    "speed": "'diinn[cpu,train,export]'",
    "memory": "'diinn[cpu]'",
    "cpu_decoder": "'diinn[cpu,train,export]'",
    "openvino": "'diinn[cpu,openvino,train,export]'",
    "streaming": "'diinn[cpu]' psutil",
    "denoise": "'diinn[cpu,train,export]'",
    "topics": "'diinn[cpu]' psutil",
    "rectify": "'diinn[cpu,train]'",
    "comparison": "'diinn[cpu,train,export]'",
    "tables": "'diinn[cpu,train,export]'",
    "figure3": "'diinn[train]'",
    "figure4": "'diinn[cpu,train,export]'",
    "gpu": "'diinn[cuda,train,export]'",
    "kernels": "'diinn[cpu]'",
    "engines": "'diinn[cuda,train,export]'",
    "fp16_sums": "'diinn[cpu,train,export]'",
    "engine_layers": "'diinn[cpu,nvidia-builder]'",
    "jetson": "'diinn[cpu]'",
    "soak": "'diinn[cpu]' psutil",
    "picture": "'diinn[cpu]'",
    "mjpeg_server": "'diinn[cpu]'",
}


def parser() -> argparse.ArgumentParser:
    """The command line; what follows the name is the benchmark's own."""
    listed = "\n".join(f"  {name:13} {about(name).replace(chr(96), '')}" for name in BENCHMARKS)
    top = Parser(
        prog="diinn-bench",
        description=__doc__,
        epilog=f"{listed}\n\ndiinn-bench NAME --help shows what each takes.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("name", metavar="NAME", help="one of those below")
    top.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…", help="its own arguments")
    return top


def about(name: str) -> str:
    """The first line of a benchmark's docstring; nothing is imported for it, as PyTorch takes seconds."""
    source = Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; exit code 0, 2 for bad input, 1 where something measured is wrong."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words:
        parser().print_help()
        return 0
    args = parser().parse_args(words)
    remedy = f"pip install {BENCHMARKS.get(args.name, '')}"
    return guarded(f"diinn-bench {args.name}" if args.name in BENCHMARKS else "diinn-bench", remedy, lambda: _run(args))


def _run(args: argparse.Namespace) -> int:
    if args.name not in BENCHMARKS:
        raise InputError(unknown("benchmark", args.name, BENCHMARKS))
    module = importlib.import_module(f"diinn.benchmarks.{args.name}")
    code: int = module.run(module.parser().parse_args(args.arguments))
    return code


if __name__ == "__main__":
    sys.exit(main())
