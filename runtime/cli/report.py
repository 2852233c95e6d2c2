"""What ``diinn-run`` reports of a run: as text, and as lines of JSON."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diinn.runtime.cli.console import FileLineWriter, LineWriter
from diinn.runtime.errors import DiinnError
from diinn.runtime.geometry.view import View
from diinn.runtime.noise.strength import NONE
from diinn.runtime.sinks import Sink
from diinn.runtime.sinks.files import VideoFile, even
from diinn.runtime.sources import Frame
from diinn.runtime.stream.stop import Stop
from diinn.runtime.stream.stream import Stream
from diinn.runtime.util.once import Once
from diinn.runtime.util.text import shown

log = logging.getLogger(__name__)
REFRESH_SECONDS = 0.1
BAR_SECONDS = 2.0  # for the progress bar to be removed; its terminal may be blocked
LINES_SECONDS, INTERRUPTED_LINES_SECONDS = 10.0, 1.0  # for the last lines of statistics, and after a signal


def finish(
    stream: Stream, stopped_by: int | None, announcements: Announcements, *, asked: bool, benchmark: bool
) -> int:
    """Print how a run ended; its exit code.

    stopped_by: the signal; asked: whether an output was named; benchmark: whether stage times are wanted
    """
    summary = stream.snapshot(final=True)
    failures = [line for source in stream.sources for line in source.failures]
    lost = [str(source.failure) for source in stream.sources if source.failure is not None]
    broken = [
        f"output {sink_thread.sink.where}: {sink_thread.failure}"
        for sink_thread in stream.sink_threads
        if sink_thread.failure is not None and not (sink_thread.abandoned and stopped_by is not None)
    ]
    unwanted = sum(camera["unwanted"] for camera in summary["cameras"].values())
    if not (summary["processed"] or unwanted) and stopped_by is None and not (failures or lost):
        raise DiinnError("no frame arrived: check the camera, or give it more time with a longer --duration")
    announcements.print(shown(_closing_line(summary)))
    if {output["where"] for output in summary["outputs"]} == {"none"} and not asked and not benchmark:
        announcements.print("nothing was shown or saved, there is no display here: add --output FILE or FOLDER")
    if benchmark:
        for stage, times in summary["ms"].items():
            announcements.print(
                f"  {stage:7} median {times['p50']:8.2f} ms   p95 {times['p95']:8.2f}   p99 {times['p99']:8.2f}"
            )
    if failures:
        total = len(failures) + summary["processed"]
        log.error("%d of %d images could not be read", len(failures), total)
    for line in (*lost, *broken):
        if line not in stream.outcome.logged:  # when it happened
            log.error("%s", line)
    for left in (thread for thread in stream.sink_threads if thread.abandoned and stopped_by is not None):
        if left.sink.closing_seconds > Sink.closing_seconds:  # what it writes wants its end
            log.warning(
                "output %s did not finish in time and was left: what it wrote may be cut short", left.sink.where
            )
    if failures or lost or broken:
        return 1
    return 0 if stopped_by is None else 128 + stopped_by


def _closing_line(summary: dict[str, Any]) -> str:
    unwanted = sum(camera["unwanted"] for camera in summary["cameras"].values())
    if not summary["processed"]:
        if unwanted:
            return f"{unwanted} frames came, and nobody subscribed to a view of one: nothing was made"
        return "ended before the first frame: nothing was written"
    age = summary["ms"].get("age", {"p50": 0.0, "p95": 0.0})
    done = f"{summary['processed']} frame{'s' * (summary['processed'] > 1)}"
    speed = f"{summary['fps']:.1f} frames/s, " if summary["fps"] else ""
    lowered: Counter[str] = Counter()
    for camera in summary["cameras"].values():
        lowered.update(camera["degraded"])
    given_up = "".join(f", {count} {quality}" for quality, count in lowered.items() if count)
    written = {o["where"] for o in summary["outputs"] if o["written"] and not o["failure"]}
    return (
        f"{done}, {speed}frame age {age['p50']:.0f} ms (p95 {age['p95']:.0f}), {summary['dropped']} dropped{given_up}"
        f"{f', {unwanted} that nobody subscribed to' if unwanted else ''}; "
        f"output: {', '.join(sorted(written)) or 'none'}"
    )


class Announcements:
    """What a run prints, each line once; among others what is done with each view, once per frame size."""

    def __init__(self, human: LineWriter) -> None:
        self._human = human
        self._printed = Once()

    def note(self, stream: Stream, frame: Frame, name: str, view: View) -> None:
        """A view whose frames have a new size."""
        for line in _announcement(stream, frame, name, view):
            self.print(shown(line))

    def print(self, line: str) -> None:
        """Print ``line`` soon, unless it was before; sizes may come and go."""
        if self._printed.first(line):
            self._human.write(line)


def _announcement(stream: Stream, frame: Frame, name: str, view: View) -> Iterator[str]:
    width, height = frame.size
    inner = view.rect[2:] if view.rect else (width, height)
    across, down = view.dsize[0] / inner[0], view.dsize[1] / inner[1]
    ratio = f"{across:.3g}" if math.isclose(across, down, rel_tol=5e-3) else f"{across:.3g} by {down:.3g}"
    part = f" ROI {','.join(f'{v:g}' for v in view.rect)}" if view.rect else ""
    lane = stream.lane(frame.source)
    label = f"{frame.source} {name}" if len(lane.specs) > 1 else frame.source
    sinks = [sink_thread.sink for sink_thread in stream.sink_threads if sink_thread.accepts((frame.source, name))]
    where = [_written(sink, view) for sink in sinks]
    wanted = lane.denoise.wanted
    cleaned = "" if wanted == NONE else f"denoise {wanted}, "
    yield (
        f"{label}: {width}x{height}{part} -> {view.dsize[0]}x{view.dsize[1]} (scale {ratio}), "
        f"model {stream.resolver.bundle.name}, {stream.resolver.backend.describe()}, {cleaned}output {', '.join(where)}"
    )
    if any(isinstance(sink, VideoFile) for sink in sinks) and not lane.source.live:
        yield "audio, if there is any, is dropped"


def _written(sink: Sink, view: View) -> str:
    """Where a view goes, with the size it has there if that is another."""
    if isinstance(sink, VideoFile) and even(view.dsize) != view.dsize:
        return f"{sink.where} (padded to {'x'.join(map(str, even(view.dsize)))}: sizes of videos are even)"
    return sink.where


@contextmanager
def statistics(target: str | None, stream: Stream, out: LineWriter, stop: Stop) -> Iterator[Callable[[], None]]:
    """Statistics as lines of JSON to a file or (``-``) to ``out``.

    What is yielded writes a line when it is called and a second has passed; the summary follows at the end. A full disk
    is logged once, and is an error at the end; a pipe without a reader is an error at the end alone.

    stop: once it is interrupted, the end does not wait for long
    """
    if target is None:
        yield lambda: None
        return
    writer = out if target == "-" else FileLineWriter(target)
    due = time.monotonic() + 1
    logged = False

    def write(*, final: bool) -> None:
        head = {"model": stream.resolver.bundle.name, "backend": stream.resolver.backend.describe()} if final else {}
        writer.write(json.dumps({**head, **stream.snapshot(final=final)}))

    def problem() -> str:
        if writer is out or writer.error is None:
            return ""
        return f"cannot write --stats {target!r}: {getattr(writer.error, 'strerror', None) or writer.error}"

    def tick() -> None:
        nonlocal due, logged
        if time.monotonic() >= due:
            due += 1
            write(final=False)
        if problem() and not logged:
            logged = True
            log.warning("%s", problem())

    try:
        yield tick
    finally:
        write(final=True)
        whole = writer is out or writer.close(LINES_SECONDS, stop, INTERRUPTED_LINES_SECONDS)
    if problem():
        raise DiinnError(problem())
    if not whole or (writer is not out and writer.lost):
        raise DiinnError(f"--stats {target!r} lacks lines: it was not read for too long, or its disk hangs")


def _total(stream: Stream) -> int | None:
    """How many frames there are to process; None where a source does not say."""
    counts = [len(source.files) or source.total for source in stream.sources]
    return sum(filter(None, counts)) if all(counts) else None


@contextmanager
def progress(
    stream: Stream, frames: int | None, out: LineWriter, err: LineWriter, *, wanted: bool
) -> Iterator[Callable[[], None]]:
    """A progress line with frames per second and frame age on ``err``, if that is a terminal that can show one.

    Refreshed at each call of what is yielded; other lines are printed above it.
    """
    if not (wanted and err.file is not None and err.file.isatty()):
        yield lambda: None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
    except ImportError:  # a system that brings its own OpenCV and backend needs nothing else
        yield lambda: None
        return

    total = frames or _total(stream)
    left = (TimeRemainingColumn(),) if total else ()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), *left)
    bar = Progress(
        *columns,
        console=Console(file=err.file),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = bar.add_task("waiting for frames", total=total)
    due = 0.0
    waiting = False

    def begin() -> None:
        bar.start()
        out.above = err.above = bar.console

    def refresh() -> None:
        nonlocal waiting
        waiting = False
        stats = stream.stats
        if stats.processed:
            text = f"{stats.fps:.1f} frames/s, age {stats.latest('age'):.0f} ms"
            bar.update(task, completed=stats.processed, description=text)
        bar.refresh()

    gone = threading.Event()

    def end() -> None:
        try:
            bar.stop()
        finally:
            out.above = err.above = None
            gone.set()

    def wait() -> None:
        gone.wait(BAR_SECONDS)

    def tick() -> None:
        nonlocal due, waiting
        if time.monotonic() >= due and not waiting:
            due, waiting = time.monotonic() + REFRESH_SECONDS, True
            err.do(refresh)

    err.do(begin)
    try:
        yield tick
    finally:
        err.do(end)
        if out.file is not None and out.file.isatty():  # so that its next line starts below the bar
            out.do(wait)
