"""``diinn-eval``: PSNR, SSIM and LR-PSNR of checkpoints and bundles beside bicubic, under the protocol it prints."""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from diinn.benchmarks import scores
from diinn.benchmarks.scores import BICUBIC, Row
from diinn.runtime.command import Parser, check_output, guarded
from diinn.runtime.errors import InputError
from diinn.train import protocol
from rich import box
from rich.console import Console
from rich.table import Table


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-eval", description=__doc__)
    top.add_argument("model", nargs="+", help="checkpoints, bundles, or names of shipped models")
    top.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="sets of HR images")
    top.add_argument("--scales", type=float, nargs="+", default=[2.0, 3.0, 4.0], metavar="S", help="default: 2 3 4")
    top.add_argument("--csv", type=Path, metavar="FILE", help="write every image's scores there")
    top.add_argument("--markdown", type=Path, metavar="FILE", help="write protocol and table there")
    top.add_argument("--json", type=Path, metavar="FILE", help="write the (one) model's quality card there")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 for bad input, 1 for a failure while running."""
    args = parser().parse_args(argv)
    return guarded("diinn-eval", "pip install 'diinn[train,export]'", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write what was asked for."""
    outputs = [path for path in (args.csv, args.markdown, args.json) if path is not None]
    for path in outputs:
        check_output(path)
    if len(set(outputs)) < len(outputs):
        raise InputError("two of --csv, --markdown and --json name one file: give each its own")
    if args.json is not None and len(args.model) > 1:
        raise InputError(f"--json is the card of one model, got {len(args.model)}: run one at a time")
    names = label(args.model)
    with ExitStack() as stack:
        opened = [stack.enter_context(scores.open_upscaler(model)) for model in args.model]
        upscalers = dict(zip(names, opened, strict=True))
        rows = scores.evaluate_sets(upscalers, args.data, args.scales)
    print(f"Protocol: {protocol.PROTOCOL}.")
    Console(width=120).print(table(rows))
    lost = below_bicubic(rows)
    pairs = sum(r.method != BICUBIC for r in rows)
    print(f"Below bicubic: {len(lost)} of {pairs} (image, scale) pairs.")
    for r, bicubic in lost:
        print(f"  {r.set}/{r.image} x{r.scale:g} {r.method}: {r.score.psnr:.3f} dB, bicubic {bicubic:.3f}")
    if args.csv is not None:
        args.csv.write_text(scores.to_csv(rows), encoding="utf-8")
    if args.markdown is not None:
        text = io.StringIO()
        Console(file=text, width=120).print(table(rows))
        args.markdown.write_text(f"Protocol: {protocol.PROTOCOL}.\n\n{text.getvalue().strip()}\n", encoding="utf-8")
    if args.json is not None:
        args.json.write_text(json.dumps(scores.card(rows, names[0]), indent=1) + "\n", encoding="utf-8")
    return 0


def label(models: Sequence[str]) -> list[str]:
    """A short name for each model: its file's, with its folder's where two are called the same."""
    short = [Path(m).stem for m in models]
    names = [s if short.count(s) == 1 else f"{Path(m).parent.name}/{s}" for s, m in zip(short, models, strict=True)]
    if len({*names, BICUBIC}) <= len(names):
        raise InputError(f"two models are called the same: {', '.join(names)}; rename one")
    return names


def table(rows: Sequence[Row]) -> Table:
    """Means as a Markdown table: a row per set, scale and method."""
    out = Table("set", "images", "scale", "method", "PSNR dB", "SSIM", "LR-PSNR dB", box=box.MARKDOWN)
    for column in (1, 2, 4, 5, 6):
        out.columns[column].justify = "right"
    for name, count in scores.sets(rows).items():
        for scale in scores.scales(rows):
            for method in dict.fromkeys(r.method for r in rows):
                s = scores.mean(rows, name, scale, method)
                out.add_row(
                    name, str(count), f"×{scale:g}", method, f"{s.psnr:.2f}", f"{s.ssim:.4f}", f"{s.lr_psnr:.2f}"
                )
    return out


def below_bicubic(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """What a model made worse than bicubic did, with bicubic's PSNR."""
    base = {(r.set, r.image, r.scale): r.score.psnr for r in rows if r.method == BICUBIC}
    return [(r, base[r.set, r.image, r.scale]) for r in rows if r.score.psnr < base[r.set, r.image, r.scale]]


if __name__ == "__main__":
    sys.exit(main())
