"""``diinn-train``: train a model from a YAML file."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from diinn.runtime.errors import InputError
from diinn.runtime.util.command_line import Parser, guarded


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-train", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    fit = commands.add_parser("fit", help="train a model")
    estimator = commands.add_parser("estimator", help="train what estimates a frame's noise and compression")
    for command in (fit, estimator):
        command.add_argument("-c", "--config", type=Path, required=True, metavar="FILE.yaml", help="the run's settings")
        command.add_argument(
            "--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="images, searched recursively"
        )
        command.add_argument(
            "--val",
            type=Path,
            nargs="+",
            default=(),
            metavar="FOLDER",
            help="hold-out images, else some of --data",
        )
        command.add_argument(
            "--out", type=Path, metavar="FOLDER", help="where the run is kept (default: runs/NAME of the YAML)"
        )
        command.add_argument("--start", type=Path, metavar="CKPT", help="begin with this checkpoint's weights")
        command.add_argument("--no-progress", action="store_true", help="no progress bar")
    fit.add_argument("--resume", action="store_true", help="go on where the run in --out stopped")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 for bad input, 1 for a failure while running."""
    args = parser().parse_args(argv)
    work = run if args.command == "fit" else run_estimator
    return guarded("diinn-train", "pip install 'diinn[train]'", lambda: work(args))


def run(args: argparse.Namespace) -> int:
    """Train a model by the arguments."""
    from diinn.train import config, fit  # Lightning takes seconds to import: not for --help

    _quiet()
    settings = config.read(args.config)
    out = args.out or Path("runs") / args.config.stem
    resume = out / "resume.ckpt"
    if args.resume and not resume.exists():
        raise InputError(f"nothing to resume: no {str(resume)!r}; leave out --resume to start")
    if not args.resume and resume.exists():
        raise InputError(f"{str(out)!r} holds a run already: add --resume to go on, or choose another --out")
    progress = sys.stderr.isatty() and not args.no_progress
    last = fit.fit(fit.Run(settings, args.data, out, args.val, args.start, args.resume, progress))
    print(f"{last}: the last checkpoint; best on the hold-out: {last.with_name('best.pth')}; {out / 'curve.png'}")
    return 0


def run_estimator(args: argparse.Namespace) -> int:
    """Train an estimator by the arguments."""
    from diinn.train import estimation

    _quiet()
    settings = estimation.read(args.config)
    out = args.out or Path("runs") / args.config.stem
    progress = sys.stderr.isatty() and not args.no_progress
    print(estimation.fit(estimation.Run(settings, args.data, out, args.val, args.start, progress)))
    return 0


def _quiet() -> None:
    # Lightning's warnings about its own parts.
    for text in ("LeafSpec", "does not have many workers", "exists and is not empty"):
        warnings.filterwarnings("ignore", f".*{text}")


if __name__ == "__main__":
    sys.exit(main())
