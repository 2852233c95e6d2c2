"""Several cameras through ``diinn-run``: frames a second, age, drops, processor and memory, by number and size.

``diinn-bench streaming`` serves MJPEG cameras on the loopback at 30 frames a second and runs the command
itself. The second table compares one process for all cameras with one process a camera.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diinn.benchmarks.watched_run import Running, cameras
from diinn.runtime.backends.base import BackendOptions
from diinn.runtime.cli.run_options import count, seconds
from diinn.runtime.errors import DiinnError
from diinn.runtime.util.command_line import Parser, check_output
from rich import box
from rich.console import Console
from rich.table import Table

CAMERAS = (1, 2, 4, 8)
SIZES = (((160, 120), (640, 480)), ((320, 240), (640, 480)))
RATE = 30.0
WARM = 3.0  # seconds before anything is counted: interpreters, models, connections


@dataclass(frozen=True)
class Row:
    """One cell.

    fps: of each camera; p50, p99: age in ms; dropped: share of the frames captured; cpu: cores in use; memory: MiB of
    all processes
    """

    model: str
    number: int
    lr: tuple[int, int]
    out: tuple[int, int]
    processes: int
    fps: float
    p50: float
    p99: float
    dropped: float
    cpu: float
    memory: float


def measure(
    model: str, number: int, lr: tuple[int, int], out: tuple[int, int], duration: float, *, apart: bool = False
) -> Row:
    """``number`` cameras in one ``diinn-run``, or with ``apart`` in one each."""
    with tempfile.TemporaryDirectory() as folder, cameras(number, lr, RATE) as served:
        common = ["--model", model, "--out-size", f"{out[0]}x{out[1]}", "--output", "none"]
        groups = [[camera] for camera in served] if apart else [served]
        runs = []
        for i, group in enumerate(groups):
            words = [word for camera in group for word in ("--camera", camera.url)]
            runs.append(Running([*words, *common], Path(folder) / f"{i}.jsonl"))
        _until_live(runs)
        time.sleep(WARM)
        starts = [run.lines()[-1] for run in runs]
        cpu, began = sum(run.cpu_seconds() for run in runs), time.monotonic()
        time.sleep(duration)
        cpu, took = sum(run.cpu_seconds() for run in runs) - cpu, time.monotonic() - began
        memory = sum(run.memory() for run in runs)
        ends = [run.lines()[-1] for run in runs]
        for run in runs:
            code, output, _ = run.end()
            if code != 130:
                raise DiinnError(f"diinn-run ended with exit code {code}: {output.strip()}")
    processed, captured, span = (
        sum(end[key] - start[key] for start, end in zip(starts, ends, strict=True))
        for key in ("processed", "captured", "seconds")
    )
    ages = [camera["age_ms"] for end in ends for camera in end["cameras"].values()]
    return Row(
        model, number, lr, out, len(runs),
        fps=processed / (span / len(runs)) / number,
        p50=sum(age["p50"] for age in ages) / len(ages),
        p99=max(age["p99"] for age in ages),
        dropped=1 - processed / max(1, captured),
        cpu=cpu / took,
        memory=memory,
    )  # fmt: skip


def _until_live(runs: Sequence[Running]) -> None:
    deadline = time.monotonic() + 60
    while not all(_live(run.lines()) for run in runs):
        if time.monotonic() > deadline or any(run.process.poll() is not None for run in runs):
            output = [run.end()[1] for run in runs]
            raise DiinnError(f"diinn-run did not come to process frames of all cameras: {' '.join(output)}")
        time.sleep(0.2)


def _live(lines: Sequence[dict[str, Any]]) -> bool:
    return bool(lines) and all(camera["processed"] for camera in lines[-1]["cameras"].values())


def table(rows: Sequence[Row]) -> Table:
    """A row per cell."""
    heads = ("model", "cameras", "frames", "processes", "fps each", "age p50 ms", "p99", "dropped", "cores", "MiB")
    out = Table(*heads, box=box.MARKDOWN)
    for column in out.columns[1:]:
        column.justify = "right"
    for r in rows:
        size = f"{r.lr[0]}x{r.lr[1]} → {r.out[0]}x{r.out[1]}"
        figures = (
            f"{r.fps:.1f}",
            f"{r.p50:.0f}",
            f"{r.p99:.0f}",
            f"{r.dropped:.0%}",
            f"{r.cpu:.2f}",
            f"{r.memory:.0f}",
        )
        out.add_row(r.model, str(r.number), size, str(r.processes), *figures)
    return out


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench streaming", description=__doc__)
    top.add_argument("--models", nargs="+", default=["nano", "small"], metavar="NAME|PATH", help="default: nano small")
    top.add_argument("--cameras", nargs="+", type=count, default=list(CAMERAS), metavar="N", help="default: 1 2 4 8")
    top.add_argument("--seconds", type=seconds, default=8.0, help="measured in each cell (default: 8)")
    top.add_argument("--out", type=Path, metavar="FILE.md", help="write the tables there too")
    return top


def run(args: argparse.Namespace) -> int:
    """Measure and print."""
    check_output(args.out, ".md")
    console = Console(width=120, record=True)
    console.print(f"{BackendOptions().thread_count} threads, cameras at {RATE:g} frames/s, {args.seconds:g} s a cell\n")
    cells = [(m, n, lr, out) for m in args.models for lr, out in SIZES for n in args.cameras]
    console.print(table([measure(*cell, args.seconds) for cell in cells]))
    several = [n for n in args.cameras if n > 1]
    if several:
        console.print("\nOne process for all cameras, and one a camera:\n")
        lr, out = SIZES[0]
        both = ((n, apart) for n in several for apart in (False, True))
        console.print(table([measure(args.models[0], n, lr, out, args.seconds, apart=apart) for n, apart in both]))
    if args.out is not None:
        args.out.write_text(console.export_text(), encoding="utf-8")
    return 0
