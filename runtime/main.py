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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from diinn.runtime.command import guarded
from diinn.runtime.errors import DiinnError, InputError

if TYPE_CHECKING:
    from diinn.runtime.sources import Frame, Source
    from diinn.runtime.stopping import Stop
    from diinn.runtime.stream.settings import CameraSettings
    from diinn.runtime.stream.stream import Stream
    from diinn.runtime.view import View
    from diinn.runtime.view_spec import ViewSpec

STDIN_STDOUT = "-"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns 0, 1 for a failure while running, 2 for bad input, 128 + n after signal n."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # what goes wrong is said once, by us
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return guarded("diinn-run", "pip install 'diinn[cpu]'", lambda: _main(argv))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from diinn.runtime.options import parser

    return parser()


def _main(argv: Sequence[str] | None) -> int:
    args = parser().parse_args(argv)
    logging.basicConfig(level=args.log_level.upper(), format="diinn-run: %(message)s", stream=sys.stderr, force=True)
    for name in ("asyncio", "aiohttp"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if args.list_models:
        return list_models()
    return list_devices() if args.list_devices else run(args)


def list_models() -> int:
    """One line a shipped model: name, size, scales, what was measured."""
    from diinn.runtime import bundle as bundles

    for name in bundles.shipped():
        found = bundles.load(name)
        megabytes = sum(p.stat().st_size for p in found.path.iterdir()) / 1e6
        scores = ", ".join(f"{k} {v}" for k, v in found.quality.get("summary", {}).items())
        print(f"{name}: {megabytes:.1f} MB, scales {found.scales[0]:g} to {found.scales[1]:g}. {scores}")
    return 0


def list_devices() -> int:
    """One line a camera: what to give as --camera, and what it is."""
    from diinn.runtime.sources.listing import devices

    for uri, what in devices():
        print(f"{uri}: {what}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Do what the arguments ask; DiinnError where that cannot be done."""
    from diinn.runtime.options import BENCHMARK_FRAMES
    from diinn.runtime.resolver import MIB, SuperResolver
    from diinn.runtime.stopping import stopping

    _check(args)
    cameras, sources = settings(args)
    backend = {"fused": "cuda", "engine": "tensorrt", None: args.backend}[args.decoder]
    frames = args.max_frames or (BENCHMARK_FRAMES if args.benchmark and not args.duration else None)
    human = sys.stderr if STDIN_STDOUT in (*args.output, args.stats) else sys.stdout
    stream: Stream | None = None
    with stopping() as stop:
        resolver = None
        try:
            resolver = SuperResolver.open(
                args.model,
                backend=backend,
                precision=args.precision,
                cuda_graphs=args.cuda_graphs,
                provider=args.provider,
                threads=args.threads,
                memory_budget=args.memory_budget * MIB,
            )
            stream = _stream(args, stop, cameras, sources, resolver, frames, human)
            stop.deadline = time.monotonic() + (args.duration or math.inf)
            with _statistics(args.stats, stream) as count, _progress(stream, frames, not args.no_progress) as show:

                def tick() -> None:
                    count()
                    show()

                try:
                    stream.run(lambda: stop.requested, tick, lambda: stop.signal is not None)
                finally:
                    if stream.busy:  # a batch of minutes: Ctrl-C is not to wait for it
                        code = 128 + (stop.signal or 2)
                        print("diinn-run: ended during a batch", file=sys.stderr)
                        sys.stdout.flush()
                        sys.stderr.flush()
                        os._exit(code)
        finally:
            for source in sources:
                source.close()
            if stream is not None:
                stream.close()
            if resolver is not None:
                resolver.close()
        return finish(args, stream, stop, human)


def _check(args: argparse.Namespace) -> None:
    """InputError for what does not go together."""
    if not (args.camera or args.input or args.cameras):
        raise InputError("no input: give --camera 0, --camera demo or --input FILE")
    backend = {"fused": "cuda", "engine": "tensorrt", None: args.backend}[args.decoder]
    if args.backend not in ("auto", backend):
        raise InputError(f"--decoder {args.decoder} is --backend {backend}, not {args.backend}: leave out one of them")
    if args.view and (args.out_size or args.scale or args.roi):
        raise InputError("--view says size and part of each view: leave out --out-size, --scale and --roi")
    if args.output.count(STDIN_STDOUT) and args.stats == STDIN_STDOUT:
        raise InputError("--output - and --stats - are one standard output: write the statistics to a file")
    twice = next((output for output in args.output if args.output.count(output) > 1), None)
    if twice is not None:
        raise InputError(f"--output {twice} is given twice: leave out one of them")
    if args.stats not in (None, STDIN_STDOUT) and not Path(args.stats).parent.is_dir():
        raise InputError(f"cannot write --stats {args.stats!r}: no such folder")


def settings(args: argparse.Namespace) -> tuple[list[CameraSettings], list[Source]]:
    """What the arguments say of each camera and input, and their sources."""
    from diinn.runtime.calibration import Calibration
    from diinn.runtime.sources import Asked, Patience, open_camera, open_input
    from diinn.runtime.stream import settings as files
    from diinn.runtime.stream.settings import CameraSettings, check_apart
    from diinn.runtime.stream.stream import name_apart, open_sources

    retries = None if args.retries in (None, math.inf) else args.retries
    patience = Patience(stall=args.stall_timeout, retries=retries)
    asked = Asked(
        args.input_size, args.input_rate, args.input_codec, args.flip, args.loop, not args.benchmark, patience
    )
    calibration = Calibration.load(args.calibration) if args.calibration else None
    base = CameraSettings("", None, asked, _views(args), max_fps=args.max_fps, calibration=calibration)
    listed = files.load(args.cameras, base) if args.cameras else []
    check_apart([*args.camera, *(camera.uri for camera in listed)])
    cameras, opened = list(listed), open_sources(listed)
    try:
        for open_one, uris in ((open_camera, args.camera), (lambda uri, a: open_input(uri, loop=a.loop), args.input)):
            for uri in uris:
                opened.append(open_one(uri, asked))
                cameras.append(replace(base, uri=uri))
        name_apart(opened)
    except BaseException:
        for source in opened:
            source.close()
        raise
    return cameras, opened


def _views(args: argparse.Namespace) -> dict[str, ViewSpec]:
    from diinn.runtime.stream.settings import DEFAULT_SCALE
    from diinn.runtime.view_spec import FULL, ROI, ViewSpec

    if not args.view:
        scale = args.scale or (None if args.out_size else DEFAULT_SCALE)
        return {"full": ViewSpec(ROI if args.roi else FULL, args.out_size, scale, args.roi)}
    views: dict[str, ViewSpec] = {}
    for text in args.view:
        name, separator, view = text.partition("=")
        if not separator:
            name, view = text.partition(":")[0], text
        if name in views:
            raise InputError(f"two views are called {name!r}: give them names, --view NAME=…")
        views[name] = ViewSpec.parse(view)
    return views


def _stream(
    args: argparse.Namespace,
    stop: Stop,
    cameras: Sequence[CameraSettings],
    sources: Sequence[Source],
    resolver: Any,
    frames: int | None,
    human: TextIO,
) -> Stream:
    from diinn.runtime.sinks import Streams, open_sinks
    from diinn.runtime.stream.stream import Stream

    streams = Streams([(source, list(camera.views)) for source, camera in zip(sources, cameras, strict=True)])
    outputs = ["none"] if args.benchmark and not args.output else args.output
    sinks = open_sinks(outputs, streams, headless=args.headless, stopped=lambda: stop.requested, viewers=args.viewers)
    try:
        stream = Stream(
            cameras,
            resolver,
            sinks=sinks,
            deadline_ms=args.deadline_ms,
            max_frames=frames,
            persistent=args.retries is not None,
            sources=sources,
            announce=lambda frame, name, view: _announce(stream, frame, name, view, human),
        )
    except BaseException:
        for sink, _ in sinks:
            sink.close(failed=True)
        raise
    for sink, _ in sinks:
        if link := getattr(sink, "link", None):
            print(f"open {link} in a browser", file=human, flush=True)
    return stream


def finish(args: argparse.Namespace, stream: Stream, stop: Stop, human: TextIO) -> int:
    """What is said of a run that has ended, and its exit code."""
    summary = stream.snapshot(final=True)
    failures = [line for source in stream.sources for line in source.failures]
    lost = [str(source.failure) for source in stream.sources if source.failure is not None]
    broken = [f"output {o.sink.where}: {o.failure}" for o in stream.outlets if o.failure is not None]
    if not summary["processed"] and stop.signal is None and not failures:
        raise DiinnError("no frame arrived: check the camera, or give it more time with a longer --duration")
    print(_closing_line(summary), file=human)
    if {output["where"] for output in summary["outputs"]} == {"none"} and not args.output and not args.benchmark:
        print("nothing was shown or saved, there is no display here: add --output FILE or FOLDER", file=human)
    if args.benchmark:
        for stage, times in summary["ms"].items():
            line = f"  {stage:7} median {times['p50']:8.2f} ms   p95 {times['p95']:8.2f}   p99 {times['p99']:8.2f}"
            print(line, file=human)
    if failures:
        total = len(failures) + summary["processed"]
        print(f"diinn-run: {len(failures)} of {total} images could not be read", file=sys.stderr)
    for line in (*lost, *broken):
        print(f"diinn-run: {line}", file=sys.stderr)
    if failures or lost or broken:
        return 1
    return 0 if stop.signal is None else 128 + stop.signal


def _closing_line(summary: dict[str, Any]) -> str:
    if not summary["processed"]:
        return "ended before the first frame: nothing was written"
    age = summary["ms"].get("age", {"p50": 0.0, "p95": 0.0})
    done = f"{summary['processed']} frame{'s' * (summary['processed'] > 1)}"
    speed = f"{summary['fps']:.1f} frames/s, " if summary["fps"] else ""
    outputs = ", ".join(sorted({output["where"] for output in summary["outputs"]}))
    return (
        f"{done}, {speed}frame age {age['p50']:.0f} ms (p95 {age['p95']:.0f}), {summary['dropped']} dropped; "
        f"output: {outputs}"
    )


def _announce(stream: Stream, frame: Frame, name: str, view: View, human: TextIO) -> None:
    """Say once per view and frame size what is done."""
    from diinn.runtime.sinks import VIDEO_SUFFIXES

    width, height = frame.size
    inner = view.rect[2:] if view.rect else (width, height)
    across, down = view.dsize[0] / inner[0], view.dsize[1] / inner[1]
    ratio = f"{across:.3g}" if math.isclose(across, down, rel_tol=5e-3) else f"{across:.3g} by {down:.3g}"
    part = f" ROI {','.join(f'{v:g}' for v in view.rect)}" if view.rect else ""
    lane = next(lane for lane in stream.lanes if lane.name == frame.source)
    label = f"{frame.source} {name}" if len(lane.specs) > 1 else frame.source
    where = [outlet.sink.where for outlet in stream.outlets if outlet.wants((frame.source, name))]
    print(
        f"{label}: {width}x{height}{part} -> {view.dsize[0]}x{view.dsize[1]} (scale {ratio}), "
        f"model {stream.resolver.bundle.name}, {stream.resolver.backend.describe()}, output {', '.join(where)}",
        file=human,
    )
    if any(Path(w).suffix.lower() in VIDEO_SUFFIXES for w in where) and not lane.source.live:
        print("audio, if there is any, is dropped", file=human)
    human.flush()


@contextmanager
def _statistics(target: str | None, stream: Stream) -> Iterator[Callable[[], None]]:
    """Writes a line of JSON whenever it is called and a second has passed, and the summary at the end; a disk that is
    full is said once, and at the end."""
    if target is None:
        yield lambda: None
        return
    problem: OSError | None = None
    due = time.monotonic() + 1
    file: TextIO | None = None

    def write(*, final: bool) -> None:
        nonlocal problem, file
        head = {"model": stream.resolver.bundle.name, "backend": stream.resolver.backend.describe()} if final else {}
        try:
            if file is None:
                file = sys.stdout if target == STDIN_STDOUT else open(target, "w", encoding="utf-8")  # noqa: SIM115
            file.write(json.dumps({**head, **stream.snapshot(final=final)}) + "\n")
            file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            if problem is None:
                logging.getLogger(__name__).warning("cannot write --stats %r: %s", target, error.strerror)
            problem = error

    def tick() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due += 1
            write(final=False)

    try:
        yield tick
        write(final=True)
    finally:
        if file is not None and file is not sys.stdout:
            try:
                file.close()
            except OSError as error:
                problem = problem or error
    if problem is not None:
        raise DiinnError(f"cannot write --stats {target!r}: {problem.strerror}")


@contextmanager
def _progress(stream: Stream, frames: int | None, wanted: bool) -> Iterator[Callable[[], None]]:
    """A progress line with frames per second and frame age, on a terminal that can show one."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:  # a system that brings its own OpenCV and backend needs nothing else
        yield lambda: None
        return

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("waiting for frames", total=frames)

        def tick() -> None:
            stats = stream.stats
            if stats.processed:
                text = f"{stats.fps:.1f} frames/s, age {stats.latest('age'):.0f} ms"
                progress.update(task, completed=stats.processed, description=text)

        yield tick


if __name__ == "__main__":
    sys.exit(main())
