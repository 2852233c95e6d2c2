"""``diinn-run``: super-resolve cameras, videos and images with an exported model."""

from __future__ import annotations

if __name__ == "__main__":
    from diinn.runtime.util.early_interrupt import quietly

    quietly()

import argparse
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from diinn.runtime.errors import InputError
from diinn.runtime.util.command_line import check_output, guarded, trace, unforeseen

if TYPE_CHECKING:
    from diinn.runtime.cli.console import LineWriter
    from diinn.runtime.cli.report import Announcements
    from diinn.runtime.cli.signals import SignalStop
    from diinn.runtime.geometry.view_spec import ViewSpec
    from diinn.runtime.sources import Source
    from diinn.runtime.stream.settings import CameraSettings
    from diinn.runtime.stream.stream import Stream
    from diinn.runtime.super_resolver import SuperResolver

log = logging.getLogger(__name__)
STANDARD_OUTPUT = "-"
OPENING_STALLS = 3  # a camera may take so many times longer to open than between two frames
SIGNALLED = 128  # exit codes above are those of signals
READER_SECONDS = 10.0  # for lines still to be written to a blocked output
SIGNALLED_SECONDS = 0.3  # the same after a signal
STARTING_SECONDS = 10.0  # that --duration waits for the first frame


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 1 for a failure while running, 2 for bad input, 128 + n after signal n."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what goes wrong is reported once, by us
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    for number in range(3):  # a closed one's number would go to the next socket that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    from diinn.runtime.cli.console import LineWriter

    name, remedy, hint = "diinn-run", "pip install 'diinn[cpu]'", "--log-level debug shows the trace"
    out, err = LineWriter(sys.stdout), LineWriter(sys.stderr)
    before, threading.excepthook = threading.excepthook, _thread_failed
    try:
        code = guarded(name, remedy, lambda: _main(argv, out, err), err.write, hint)
    finally:
        threading.excepthook = before
    seconds = SIGNALLED_SECONDS if code > SIGNALLED else READER_SECONDS
    written = [writer.close(seconds) for writer in (out, err)]
    if not all(written):  # an ordinary end would wait for the blocked output
        os._exit(code or 1)
    after = guarded(name, remedy, lambda: _check(out))
    return code or after


def _check(out: LineWriter) -> int:
    """Raise what went wrong on standard output; errors of standard error are ignored."""
    if out.error is not None:
        raise out.error
    return int(out.lost > 0)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    # isort: off
    from diinn.runtime.util import opencv  # noqa: F401  first, since it reports what is wrong with an OpenCV
    from diinn.runtime.cli.run_options import parser
    # isort: on

    return parser()


def _main(argv: Sequence[str] | None, out: LineWriter, err: LineWriter) -> int:
    from diinn.runtime.cli.console import Handler

    args = parser().parse_args(argv)
    if args.list_models:
        return list_models()
    if args.list_devices:
        return list_devices()
    level = args.log_level.upper()
    logging.basicConfig(level=level, format="diinn-run: %(message)s", handlers=[Handler(err)], force=True)
    for name in ("asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return run(args, out, err)


def _thread_failed(what: threading.ExceptHookArgs) -> None:
    """A line where Python would print a trace."""
    if what.exc_value is not None:
        log.error("%s: %s", what.thread.name if what.thread else "a thread", unforeseen(what.exc_value))
        trace(what.exc_value)


def list_models() -> int:
    """One line a shipped model: name, size, scales, what was measured."""
    from diinn.runtime.bundles import bundle as bundles

    for name in bundles.shipped():
        found = bundles.load(name)
        megabytes = sum(p.stat().st_size for p in found.path.iterdir()) / 1e6
        scores = ", ".join(f"{k} {v}" for k, v in found.quality.get("summary", {}).items())
        dial = f", denoise 0 to {found.dial.noise:g}" if found.dial else ""
        print(f"{name}: {megabytes:.1f} MB, scales {found.scales[0]:g} to {found.scales[1]:g}{dial}. {scores}")
    return 0


def list_devices() -> int:
    """One line a camera: what to give as --camera, and what it is."""
    from diinn.runtime.sources.listing import devices
    from diinn.runtime.util.text import printable

    for uri, what in devices():
        print(printable(f"{uri}: {what}"))  # the name comes from the device
    return 0


def run(args: argparse.Namespace, out: LineWriter, err: LineWriter) -> int:
    """Run the command; DiinnError where that fails."""
    from diinn.runtime.cli import report
    from diinn.runtime.cli.run_options import BENCHMARK_FRAMES
    from diinn.runtime.cli.signals import ended_by_signals, stopping
    from diinn.runtime.super_resolver import SuperResolver
    from diinn.runtime.util.memory import MIB

    _check_arguments(args)
    frames = args.max_frames or (BENCHMARK_FRAMES if args.benchmark and not args.duration else None)
    announcements = report.Announcements(err if STANDARD_OUTPUT in (*args.output, args.stats) else out)
    stream: Stream | None = None
    resolver: SuperResolver | None = None
    sources: Sequence[Source] = ()
    with stopping() as stop:
        try:
            with ended_by_signals():
                cameras, sources = settings(args)
                resolver = SuperResolver.open(
                    args.model,
                    backend=args.backend,
                    decoder=args.decoder,
                    precision=args.precision,
                    cuda_graphs=args.cuda_graphs,
                    zero_copy=args.zero_copy,
                    provider=args.provider,
                    threads=args.threads,
                    memory_budget=args.memory_budget * MIB,
                )
                stream = _stream(args, stop, cameras, sources, resolver, frames, announcements)
            with report.statistics(args.stats, stream, out, stop) as count:
                with report.progress(stream, frames, out, err, wanted=not args.no_progress) as show:
                    own = all(source.timed for source in sources)  # then it is seconds of the bags
                    _run(stream, stop, math.inf if own else args.duration or math.inf, out, (count, show))
                return report.finish(
                    stream, stop.signal, announcements, asked=bool(args.output), benchmark=args.benchmark
                )
        finally:
            if stream is None:
                for source in sources:
                    source.close()
            else:
                stream.close(stop)
            if stream is not None and stream.busy:  # a batch of minutes: Ctrl-C is not to wait for it
                out.close(SIGNALLED_SECONDS)
                err.close(SIGNALLED_SECONDS)
                os._exit(128 + (stop.signal or 2))
            if resolver is not None:
                resolver.close()


def _run(
    stream: Stream, stop: SignalStop, duration: float, out: LineWriter, ticks: Sequence[Callable[[], None]]
) -> None:
    """Run ``stream`` until ``stop``, for ``duration`` seconds from its first frame; ``ticks`` are called meanwhile."""
    begun = False
    stop.deadline = time.monotonic() + duration + STARTING_SECONDS

    def tick() -> None:
        nonlocal begun
        if stream.stats.processed and not begun:
            begun = True
            stop.deadline = time.monotonic() + duration
        if isinstance(out.error, BrokenPipeError):
            raise out.error
        for do in ticks:
            do()

    stream.run(stop, tick)


def _check_arguments(args: argparse.Namespace) -> None:
    """InputError for arguments that do not go together."""
    from diinn.runtime.sinks import bag

    if not (args.camera or args.input or args.cameras):
        raise InputError("no input: give --camera 0, --camera demo or --input FILE")
    if args.view and (args.out_size or args.scale or args.roi):
        raise InputError("--view says size and part of each view: leave out --out-size, --scale and --roi")
    if args.stats == STANDARD_OUTPUT and sys.stdout is None:
        raise InputError("--stats - writes to standard output, which is closed: name a file")
    if STANDARD_OUTPUT in args.output and args.stats == STANDARD_OUTPUT:
        raise InputError("--output - and --stats - are one standard output: write the statistics to a file")
    bags = [bag.split(output) for output in args.output]
    files = [found[0] if found else output for found, output in zip(bags, args.output, strict=True)]
    places = [name if "://" in name else os.path.abspath(name) for name in files]  # noqa: PTH100
    twice = next((output for output, place in zip(args.output, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise InputError(f"--output {twice} is given twice: leave out one of them")
    if args.stats not in (None, STANDARD_OUTPUT):
        check_output(Path(args.stats))


def settings(args: argparse.Namespace) -> tuple[list[CameraSettings], list[Source]]:
    """The settings of each camera and input by the arguments, and their sources."""
    from diinn.runtime.geometry.calibration import Calibration
    from diinn.runtime.sinks import result_paths
    from diinn.runtime.sources import CaptureOptions, RetryPolicy, each_topic, open_camera, open_input
    from diinn.runtime.stream import settings as files
    from diinn.runtime.stream.settings import CameraSettings, check_apart, name_apart, open_sources

    retries = None if args.retries in (None, math.inf) else args.retries
    retry = RetryPolicy(OPENING_STALLS * args.stall_timeout, args.stall_timeout, retries)
    options = CaptureOptions(
        args.input_size,
        args.input_rate,
        args.input_codec,
        args.flip,
        args.loop,
        args.noise,
        not args.benchmark,
        retry,
        result_paths(args.output),
        args.start,
        args.duration,
    )
    calibration = Calibration.load(args.calibration) if args.calibration else None
    base = CameraSettings(
        "", None, options, _views(args), max_fps=args.max_fps, calibration=calibration, denoise=args.denoise
    )
    listed = files.load(args.cameras, base) if args.cameras else []
    check_apart([*args.camera, *(camera.uri for camera in listed)])
    cameras, opened = list(listed), open_sources(listed)
    with ExitStack() as failing:
        for source in opened:
            failing.callback(source.close)
        for open_one, uris in (
            (open_camera, args.camera),
            (open_input, chain.from_iterable(map(each_topic, args.input))),
        ):
            for uri in uris:
                opened.append(open_one(uri, options))
                failing.callback(opened[-1].close)
                cameras.append(replace(base, uri=uri))
        name_apart(opened)
        if args.start and not any(source.timed for source in opened):
            raise InputError(f"--start {args.start:g} is for bags, and there is none: leave it out")
        failing.pop_all()
    return cameras, opened


def _views(args: argparse.Namespace) -> dict[str, ViewSpec]:
    from diinn.runtime.cli.run_options import named_views
    from diinn.runtime.geometry.view_spec import FULL, ROI, ViewSpec
    from diinn.runtime.stream.settings import DEFAULT_SCALE

    if not args.view:
        scale = args.scale or (None if args.out_size else DEFAULT_SCALE)
        return {"full": ViewSpec(ROI if args.roi else FULL, args.out_size, scale, args.roi)}
    return named_views(args.view)


def _stream(
    args: argparse.Namespace,
    stop: SignalStop,
    cameras: Sequence[CameraSettings],
    sources: Sequence[Source],
    resolver: SuperResolver,
    frames: int | None,
    announcements: Announcements,
) -> Stream:
    from diinn.runtime.sinks import Streams, open_sinks
    from diinn.runtime.stream.stream import Stream

    streams = Streams([(source, list(camera.views)) for source, camera in zip(sources, cameras, strict=True)])
    outputs = ["none"] if args.benchmark and not args.output else args.output
    sinks = open_sinks(outputs, streams, headless=args.headless, stop=stop, viewers=args.viewers)
    with ExitStack() as failing:
        for sink, _ in sinks:
            failing.callback(sink.close, failed=True)
        stream = Stream(
            cameras,
            resolver,
            sinks=sinks,
            deadline_ms=args.deadline_ms,
            max_frames=frames,
            wait_for_cameras=args.retries is not None,
            sources=sources,
            announce=lambda *what: announcements.note(stream, *what),
        )
        failing.pop_all()
    for sink, _ in sinks:
        if sink.link:
            announcements.print(f"open {sink.link} in a browser")
    return stream


if __name__ == "__main__":
    sys.exit(main())
