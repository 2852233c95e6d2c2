"""``diinn-eval``: PSNR, SSIM and LR-PSNR of checkpoints and bundles beside bicubic, under the protocol it prints.

With --degrade the LR frames are made noisy or compressed first, and OpenCV's methods are measured beside the models.
"""

import argparse
import io
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from diinn.benchmarks import scores
from diinn.benchmarks.scores import BICUBIC, Row
from diinn.runtime.errors import InputError
from diinn.runtime.noise.strength import AUTO
from diinn.runtime.util.command_line import Parser, check_output, guarded
from diinn.train import degradation, protocol
from rich import box
from rich.console import Console
from rich.table import Table

DEGRADED = (
    "Degraded frames: LR as above, then white noise (noise:), a sensor's (camera:), a blur or OpenCV's JPEG, uint8; "
    "fixed seeds. Gains are over cv2.INTER_CUBIC of the same frame, mean over the images of all sets."
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-eval", description=__doc__)
    top.add_argument("model", nargs="+", help="checkpoints, bundles, or names of shipped models")
    top.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="sets of HR images")
    top.add_argument("--scales", type=float, nargs="+", default=[2.0, 3.0, 4.0], metavar="S", help="default: 2 3 4")
    top.add_argument(
        "--degrade",
        type=degraded,
        action="append",
        default=[],
        metavar="KIND:AMOUNT",
        help="degrade LR frames, seeds fixed: noise:5 (white) or camera:5 (a sensor's), in grey levels, jpeg:85, "
        "blur:0.6 (LR pixels), clean, or several joined by +; repeatable",
    )
    top.add_argument(
        "--denoise",
        nargs="+",
        metavar="HOW",
        help="for models with a dial: 0, a level, auto (bundles), true (default: 0; with --degrade auto for "
        "bundles, true for checkpoints)",
    )
    top.add_argument(
        "--fast", action="store_true", help="with --degrade: PSNR alone, beside OpenCV's cubic alone: four times faster"
    )
    top.add_argument("--csv", type=Path, metavar="FILE", help="write every image's scores there")
    top.add_argument("--markdown", type=Path, metavar="FILE", help="write protocol and table there")
    top.add_argument("--json", type=Path, metavar="FILE", help="write the (one) model's quality card there")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 for bad input, 1 for a failure while running."""
    args = parser().parse_args(argv)
    return guarded("diinn-eval", "pip install 'diinn[cpu,train,export]'", lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Measure, print, and write the files of the arguments."""
    outputs = [path for path in (args.csv, args.markdown, args.json) if path is not None]
    for path in outputs:
        check_output(path)
    if len(set(outputs)) < len(outputs):
        raise InputError("two of --csv, --markdown and --json name one file: give each its own")
    if args.json is not None and len(args.model) > 1:
        raise InputError(f"--json is the card of one model, got {len(args.model)}: run one at a time")
    if args.fast and not args.degrade:
        raise InputError("--fast is for degraded frames: add --degrade, such as --degrade noise:5")
    if args.json is not None:
        check_card(args)
    names = label(args.model)
    with ExitStack() as stack:
        upscalers: dict[str, scores.Method] = dict(scores.PLAIN) if args.degrade else {}
        if args.fast:
            upscalers = {scores.CUBIC: scores.PLAIN[scores.CUBIC]}
        for name, model in zip(names, args.model, strict=True):
            for how in ways(model, args.denoise, degraded=bool(args.degrade)):
                upscalers[named(name, how)] = stack.enter_context(scores.open_upscaler(model, how))
        rows = scores.evaluate_sets(upscalers, args.data, args.scales, args.degrade or (scores.CLEAN,), fast=args.fast)
    print(f"Protocol: {protocol.PROTOCOL}.")
    if args.degrade:
        print(DEGRADED)
    Console(width=140).print(table(rows))
    lost = below_bicubic(rows)
    pairs = sum(r.method != BICUBIC for r in rows)
    if not args.degrade:
        print(f"Below bicubic: {len(lost)} of {pairs} (image, scale) pairs.")
        for r, bicubic in lost:
            print(f"  {r.set}/{r.image} x{r.scale:g} {r.method}: {r.score.psnr:.3f} dB, bicubic {bicubic:.3f}")
    if args.csv is not None:
        args.csv.write_text(scores.to_csv(rows), encoding="utf-8")
    if args.markdown is not None:
        text = io.StringIO()
        Console(file=text, width=140).print(table(rows))
        head = f"Protocol: {protocol.PROTOCOL}.\n\n" + f"{DEGRADED}\n\n" * bool(args.degrade)
        args.markdown.write_text(f"{head}{text.getvalue().strip()}\n", encoding="utf-8")
    if args.json is not None:
        card = scores.card(rows, names[0], *([named(names[0], AUTO)] if args.degrade else []))
        args.json.write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return 0


def check_card(args: argparse.Namespace) -> None:
    """InputError where the settings do not make a card: clean frames with denoise 0, degraded ones with auto."""
    (model,) = args.model
    strengths = ways(model, args.denoise, degraded=bool(args.degrade))
    if "0" not in strengths or (args.degrade and (scores.CLEAN not in args.degrade or AUTO not in strengths)):
        raise InputError(
            "--json is a card: it needs clean frames with --denoise 0, and with --degrade also --degrade clean and "
            "--denoise 0 auto"
        )


def degraded(text: str) -> degradation.Degradation:
    """A degradation; ArgumentTypeError for what is none."""
    try:
        return degradation.Degradation.parse(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def ways(model: str, given: Sequence[str] | None, *, degraded: bool) -> Sequence[str]:
    """The values of --denoise for a model, one or several; "0" for one without a dial."""
    if scores.dial(model) is None:
        return ("0",)
    if given is not None:
        return given
    return ("0",) if not degraded else (scores.TRUE,) if Path(model).is_file() else (AUTO,)


def named(name: str, how: str) -> str:
    """A model's name in tables, with its value of --denoise."""
    return name if how == "0" else f"{name}, {how}"


def label(models: Sequence[str]) -> list[str]:
    """A short name for each model: its file's, with its folder's where two are called the same."""
    short = [Path(m).stem for m in models]
    names = [s if short.count(s) == 1 else f"{Path(m).parent.name}/{s}" for s, m in zip(short, models, strict=True)]
    if len({*names, BICUBIC}) <= len(names):
        raise InputError(f"two models are called the same: {', '.join(names)}; rename one")
    return names


def table(rows: Sequence[Row]) -> Table:
    """Means as a Markdown table: a row per set, scale and method, and per degradation where there are any."""
    if any(r.frames != scores.CLEAN.name for r in rows):
        return _gains(rows)
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


def _gains(rows: Sequence[Row]) -> Table:
    """PSNR and SSIM of degraded frames, and PSNR over OpenCV's cubic interpolation, over all sets together."""
    heads = ("frames", "scale", "method", "images", "PSNR dB", "SSIM", "over cubic", "worst image", "below cubic")
    out = Table(*heads, box=box.MARKDOWN)
    for column in (3, 4, 5, 6, 8):
        out.columns[column].justify = "right"
    for frames in scores.frames(rows):
        for scale in scores.scales(rows):
            for method in dict.fromkeys(r.method for r in rows):
                found = [r.score for r in rows if (r.frames, r.scale, r.method) == (frames, scale, method)]
                gain = scores.gain(rows, method, scores.CUBIC, scale, frames)
                means = [sum(getattr(s, m) for s in found) / len(found) for m in ("psnr", "ssim")]
                out.add_row(
                    *(frames, f"×{scale:g}", method, str(len(found)), f"{means[0]:.2f}", f"{means[1]:.4f}"),
                    *(f"{gain.mean:+.2f}", f"{gain.worst:+.2f} {gain.image}", str(gain.below)),
                )
    return out


def below_bicubic(rows: Sequence[Row]) -> list[tuple[Row, float]]:
    """The rows where a model is worse than bicubic, with bicubic's PSNR."""
    base = {r.place: r.score.psnr for r in rows if r.method == BICUBIC}
    return [(r, base[r.place]) for r in rows if r.score.psnr < base[r.place]]


if __name__ == "__main__":
    sys.exit(main())
