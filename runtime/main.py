"""``diinn-run``: super-resolve cameras, videos and images with an exported model."""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diinn.runtime import bundle as bundles
from diinn.runtime.command import Parser, guarded
from diinn.runtime.errors import DiinnError, InputError

if TYPE_CHECKING:
    from diinn.runtime.resolver import SuperResolver
    from diinn.runtime.run import Run, Stop
    from diinn.runtime.sinks import Sink
    from diinn.runtime.sources import Frame, Source
    from diinn.runtime.stats import Stats
    from diinn.runtime.view import View

BENCHMARK_FRAMES = 100
DEFAULT_SCALE = 2.0
EPILOG = """\
examples:
  diinn-run --camera demo --out-size 640x480 --output demo.mp4 --duration 10
  diinn-run --camera 0 --out-size 640x480
  diinn-run --input photos/ --scale 2.5 --output bigger/
"""


def parser() -> argparse.ArgumentParser:
    """The command line; sizes are WIDTHxHEIGHT."""
    top = Parser(
        prog="diinn-run", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.hint = "files are given as --input PATH, a glob in quotes"
    source = top.add_argument_group("input")
    source.add_argument(
        "--camera",
        action="append",
        default=[],
        metavar="N|URI",
        help="0, /dev/video0, v4l2://, csi://0, rtsp://, http://, file://, demo; repeatable",
    )
    source.add_argument(
        "--input", action="append", default=[], metavar="PATH", help="image, video, folder or quoted glob; repeatable"
    )
    source.add_argument("--input-size", type=size, metavar="WxH", help="frame size asked of the cameras")
    source.add_argument("--loop", action="store_true", help="start videos again when they end")
    view = top.add_argument_group("what is made of it")
    goal = view.add_mutually_exclusive_group()
    goal.add_argument("--out-size", type=size, metavar="WxH", help="output size")
    goal.add_argument(
        "--scale",
        type=scale,
        metavar="S",
        help=f"output size as a multiple of the input's (default: {DEFAULT_SCALE:g})",
    )
    view.add_argument("--roi", type=rect, metavar="x,y,w,h", help="a rectangle of the frame, real-valued pixels")
    model = top.add_argument_group("model")
    model.add_argument(
        "--model", default="small", metavar="NAME|PATH", help="shipped model or a .diinn folder (default: small)"
    )
    model.add_argument("--list-models", action="store_true", help="list the shipped models and exit")
    model.add_argument("--backend", default="auto", help="cuda, tensorrt, onnxruntime or auto (default)")
    model.add_argument(
        "--decoder", choices=("fused", "engine"), help="on a GPU: one kernel (--backend cuda) or TensorRT's engine"
    )
    model.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="of TensorRT engines (default: fp16)")
    model.add_argument(
        "--cuda-graphs", action="store_true", help="replay the work on a GPU as CUDA graphs: fewer launches"
    )
    model.add_argument("--provider", help="device of the backend: cpu (default), cuda, … as installed")
    model.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: all)")
    model.add_argument(
        "--memory-budget",
        type=count,
        default=512,
        metavar="MiB",
        help="most the encoder may need for one frame; larger frames go in bands (default: 512)",
    )
    out = top.add_argument_group("output")
    out.add_argument(
        "--output", metavar="FILE|FOLDER|display://0|none", help="default: a window where there is a display, else none"
    )
    out.add_argument("--headless", action="store_true", help="never open a window")
    out.add_argument("--stats", type=Path, metavar="FILE.json", help="write the statistics there at the end")
    run = top.add_argument_group("run")
    run.add_argument("--max-frames", type=count, metavar="N", help="end after N frames")
    run.add_argument("--duration", type=seconds, metavar="S", help="end after S seconds")
    run.add_argument(
        "--benchmark",
        action="store_true",
        help=f"as fast as it goes, {BENCHMARK_FRAMES} frames unless said otherwise, and print stage times",
    )
    run.add_argument("--no-progress", action="store_true", help="no progress line")
    run.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"))
    run.add_argument("--version", action="version", version=f"diinn {_version()}")
    return top


def size(text: str) -> tuple[int, int]:
    """WIDTHxHEIGHT."""
    from diinn.runtime.view import check_size

    width, x, height = text.lower().partition("x")
    if not (x and width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT in pixels, such as 640x480")
    if max(len(width), len(height)) > 9:
        raise argparse.ArgumentTypeError(f"{text[:30]!r} is too large a size")
    return _checked(lambda: check_size((int(width), int(height))))


def scale(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a scale: give a number above 0 and up to 1000, such as 2.5")
    return value


def rect(text: str) -> tuple[float, float, float, float]:
    """x,y,width,height."""
    values = [_number(part) for part in text.split(",")]
    if len(values) != 4 or not all(map(math.isfinite, values)) or min(values[:2]) < 0 or min(values[2:]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y,w,h inside the frame: such as 40,30,80,60")
    return values[0], values[1], values[2], values[3]


def count(text: str) -> int:
    """A whole number from 1 up."""
    if not (text.isascii() and text.isdigit() and 0 < int(text[:12]) < 10**9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def threads(text: str) -> int:
    """A number of threads a machine may have."""
    if count(text) > 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is more threads than 1024")
    return count(text)


def seconds(text: str) -> float:
    """A time above 0."""
    value = _number(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 1 for a failure while running, 2 for bad input, 128 + n after signal n."""
    args = parser().parse_args(argv)
    logging.basicConfig(level=args.log_level.upper(), format="diinn-run: %(message)s", stream=sys.stderr, force=True)
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what goes wrong is said once, by us
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return guarded("diinn-run", "pip install 'diinn[cpu]'", list_models if args.list_models else lambda: run(args))


def list_models() -> int:
    """One line a shipped model: name, size, scales, what was measured."""
    for name in bundles.shipped():
        found = bundles.load(name)
        megabytes = sum(p.stat().st_size for p in found.path.iterdir()) / 1e6
        scores = ", ".join(f"{k} {v}" for k, v in found.quality.get("summary", {}).items())
        print(f"{name}: {megabytes:.1f} MB, scales {found.scales[0]:g} to {found.scales[1]:g}. {scores}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Do what the arguments ask; DiinnError where that cannot be done."""
    from diinn.runtime.resolver import MIB, SuperResolver
    from diinn.runtime.run import Run, Wanted, stopping

    if not (args.camera or args.input):
        raise InputError("no input: give --camera 0, --camera demo or --input FILE")
    backend = {"fused": "cuda", "engine": "tensorrt", None: args.backend}[args.decoder]
    if args.backend not in ("auto", backend):
        raise InputError(f"--decoder {args.decoder} is --backend {backend}, not {args.backend}: leave out one of them")
    if args.stats is not None and not args.stats.parent.is_dir():
        raise InputError(f"cannot write --stats {str(args.stats)!r}: no such folder")
    goal = Wanted(args.out_size, args.scale or (None if args.out_size else DEFAULT_SCALE), args.roi)
    frames = args.max_frames or (BENCHMARK_FRAMES if args.benchmark and not args.duration else None)
    with stopping() as stop:
        with SuperResolver.open(
            args.model,
            backend=backend,
            precision=args.precision,
            cuda_graphs=args.cuda_graphs,
            provider=args.provider,
            threads=args.threads,
            memory_budget=args.memory_budget * MIB,
        ) as resolver:
            routes = open_routes(args, stop)
            announced = _announcer(resolver, {source.name: sink for source, sink in routes})
            job = Run(resolver, routes, goal, frames, announced)
            stop.deadline = time.monotonic() + (args.duration or math.inf)
            with _progress(job, frames, not args.no_progress) as tick:
                job.run(stop, tick)
        return finish(args, job, stop)


def open_routes(args: argparse.Namespace, stop: Stop) -> list[tuple[Source, Sink]]:
    """Every source with its sink; those opened already are closed when one fails."""
    from diinn.runtime import sinks, sources

    several = len(args.camera) + len(args.input) > 1
    output = "none" if args.benchmark and args.output is None else args.output
    opened: list[Source] = []
    routes = []
    try:
        for uri in args.camera:
            opened.append(sources.open_camera(uri, args.input_size, loop=args.loop, paced=not args.benchmark))
        for pattern in args.input:
            opened.append(sources.open_input(pattern, loop=args.loop))
        _name_apart(opened)
        for source in opened:
            sink = sinks.open_sink(
                output, source, several=several, headless=args.headless, stopped=lambda: stop.requested
            )
            routes.append((source, sink))
    except BaseException:
        for source in opened:
            source.close()
        raise
    return routes


def finish(args: argparse.Namespace, job: Run, stop: Stop) -> int:
    """Statistics, failures and the exit code of a run that has ended."""
    summary = {
        "model": job.resolver.bundle.name,
        "backend": job.resolver.backend.describe(),
        "sources": [source.name for source, _ in job.routes],
        "outputs": [sink.where for _, sink in job.routes],
        **job.stats.summary(job.captured),
    }
    if args.stats is not None:
        try:
            args.stats.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        except OSError as error:
            raise DiinnError(f"cannot write --stats {str(args.stats)!r}: {error.strerror}") from None
    failures = [line for source, _ in job.routes for line in source.failures]
    if not job.stats.processed and stop.signal is None and not failures:
        raise DiinnError("no frame arrived: check the camera, or give it more time with a longer --duration")
    print(_closing_line(summary))
    if set(summary["outputs"]) == {"none"} and args.output is None and not args.benchmark:
        print("nothing was shown or saved, there is no display here: add --output FILE or FOLDER")
    if args.benchmark:
        for stage, times in summary["ms"].items():
            print(f"  {stage:7} median {times['p50']:8.2f} ms   p95 {times['p95']:8.2f}   p99 {times['p99']:8.2f}")
    if failures:
        print(
            f"diinn-run: {len(failures)} of {len(failures) + job.stats.processed} images could not be read",
            file=sys.stderr,
        )
        return 1
    return 0 if stop.signal is None else 128 + stop.signal


def _closing_line(summary: dict[str, Any]) -> str:
    if not summary["processed"]:
        return "ended before the first frame: nothing was written"
    age = summary["ms"]["age"]
    done = f"{summary['processed']} frame{'s' * (summary['processed'] > 1)}"
    speed = f"{summary['fps']:.1f} frames/s, " if summary["fps"] else ""
    return (
        f"{done}, {speed}frame age {age['p50']:.0f} ms (p95 {age['p95']:.0f}), {summary['dropped']} dropped; "
        f"output: {', '.join(sorted(set(summary['outputs'])))}"
    )


def _announcer(resolver: SuperResolver, sinks: dict[str, Sink]) -> Callable[[Frame, View], None]:
    """Says once per source and frame size what is done."""
    from diinn.runtime.sinks import VIDEO_SUFFIXES

    def announce(frame: Frame, view: View) -> None:
        height, width = frame.image.shape[:2]
        inner = view.rect[2:] if view.rect else (width, height)
        across, down = view.dsize[0] / inner[0], view.dsize[1] / inner[1]
        ratio = f"{across:.3g}" if math.isclose(across, down, rel_tol=5e-3) else f"{across:.3g} by {down:.3g}"
        part = f" ROI {','.join(f'{v:g}' for v in view.rect)}" if view.rect else ""
        where = sinks[frame.source].where
        print(
            f"{frame.source}: {width}x{height}{part} -> {view.dsize[0]}x{view.dsize[1]} (scale {ratio}), "
            f"model {resolver.bundle.name}, {resolver.backend.describe()}, output {where}"
        )
        if Path(where).suffix.lower() in VIDEO_SUFFIXES and not frame.source.startswith("demo"):
            print("audio, if there is any, is dropped")
        sys.stdout.flush()

    return announce


@contextmanager
def _progress(job: Run, frames: int | None, wanted: bool) -> Iterator[Callable[[Stats], None]]:
    """A progress line with frames per second and frame age, on a terminal that can show one."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda stats: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:  # a system that brings its own OpenCV and backend needs nothing else
        yield lambda stats: None
        return

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("waiting for frames", total=frames)

        def tick(stats: Stats) -> None:
            text = f"{stats.fps:.1f} frames/s, age {stats.latest('age'):.0f} ms"
            progress.update(task, completed=stats.processed, description=text)

        yield tick


def _name_apart(opened: Sequence[Source]) -> None:
    """Number sources that bear the same name, so that their files and statistics stay apart."""
    taken: set[str] = set()
    for source in opened:
        wanted, number = source.name, 1
        while source.name in taken:
            number += 1
            source.name = f"{wanted}-{number}"
        taken.add(source.name)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _checked(make: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    try:
        return make()
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _version() -> str:
    try:
        return version("diinn")
    except PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
