"""DIINN, LIIF and Meta-SR on a robot's own computer: latency, frames a second, memory, power, energy a frame.

``diinn-bench jetson`` runs wherever the runtime does, without torch; on a Jetson it records power mode,
clocks, temperatures and fan with the figures. Without arguments it takes the three bundles of the comparison (the same
encoder each) if they exist, and the shipped models.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from diinn.benchmarks import memory, roofline
from diinn.benchmarks.board import Board, Watched, soak
from diinn.runtime.bundles import bundle as bundles
from diinn.runtime.cli import doctor
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.geometry.grid import Size
from diinn.runtime.geometry.view import View
from diinn.runtime.sources import demo
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util.command_line import Parser, check_output
from diinn.runtime.util.memory import MIB
from rich import box
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from diinn.runtime.bundles.bundle import Bundle

COMPARISON = Path(__file__).parent / "results" / "comparison"
# (LR, output, cameras): the paper's Table 4, then what robots have
CELLS: tuple[tuple[Size, Size, int], ...] = (
    ((48, 48), (128, 128), 1),
    ((48, 48), (256, 256), 1),
    ((48, 48), (512, 512), 1),
    *(((160, 120), (640, 480), cameras) for cameras in (1, 2, 3, 4)),
    ((320, 240), (1280, 960), 1),
)
THROTTLED = 0.95  # of the fastest clock seen


@dataclass(frozen=True)
class Row:
    """One model in one cell, or what failed.

    p50, p95: milliseconds from uint8 frames of all cameras to their uint8 views; memory: MiB that the process or the
    GPU took at most; watts, joules: of the module, a frame; None where not readable
    replays: of CUDA graphs in this cell
    """

    model: str
    backend: str
    lr: Size
    out: Size
    cameras: int
    p50: float = 0.0
    p95: float = 0.0
    frames_per_second: float = 0.0
    memory: float = 0.0
    watts: float | None = None
    joules: float | None = None
    replays: int = 0
    warnings: tuple[str, ...] = ()
    failed: str = ""

    @property
    def cell(self) -> str:
        cameras = f"{self.cameras} x " if self.cameras > 1 else ""
        return f"{cameras}{self.lr[0]}x{self.lr[1]} → {self.out[0]}x{self.out[1]}"


def measure(
    bundle: Bundle, backend: str, precision: str | None, args: argparse.Namespace, board: Board
) -> Iterator[Row]:
    """Every cell; one that fails is a row with the reason."""
    with SuperResolver.open(
        bundle.path,
        backend=backend,
        precision=precision,
        cuda_graphs=args.cuda_graphs,
        zero_copy=args.zero_copy,
    ) as resolver:
        for i, (lr, out, cameras) in enumerate(CELLS):
            frames, view = [demo.frame(float(n), lr) for n in range(cameras)], View.resize(out)

            def once(frames: list[Any] = frames, view: View = view) -> None:
                resolver.decode_all([(encoded, [view]) for encoded in resolver.encode(frames)])

            name, before = resolver.backend.describe(), replayed(resolver)
            with contextlib.suppress(OSError):  # then it is the process' peak so far
                memory.reset_peak()
            try:
                once()
                soak(once, args.soak if i == 0 else 0)
                times: list[float] = []
                with Watched(board) as watched:
                    until = time.monotonic() + args.seconds
                    while time.monotonic() < until or len(times) < args.least:
                        began = time.perf_counter()
                        once()
                        times.append((time.perf_counter() - began) * 1e3)
            except DiinnError as error:
                yield Row(bundle.name, name, lr, out, cameras, failed=str(error))
                continue
            p50 = statistics.median(times)
            rate = cameras * 1e3 / p50
            warnings = board.warnings()
            if watched.slowest < THROTTLED * watched.fastest:
                clocks = f"{watched.fastest:.0f} to {watched.slowest:.0f} MHz"
                warnings.append(f"the GPU's clock went from {clocks}: throttled, or not locked")
            joules = None if watched.watts is None else watched.watts / rate
            replays = replayed(resolver) - before
            figures = (p50, float(np.quantile(times, 0.95)), rate, taken(resolver), watched.watts, joules, replays)
            yield Row(bundle.name, name, lr, out, cameras, *figures, tuple(warnings))


def replayed(resolver: SuperResolver) -> int:
    """How often CUDA graphs were replayed so far; 0 without a GPU."""
    return int(getattr(resolver.backend, "replays", 0))


def taken(resolver: SuperResolver) -> float:
    """MiB the process took at most since ``memory.reset_peak``, with what is in use of the GPU's own memory.

    A Jetson's GPU has none of its own.
    """
    took = memory.status("VmHWM") / MIB
    device = getattr(resolver.backend, "device", None)
    if device is None or doctor.TEGRA.exists():
        return took
    free, total = device.memory()
    return took + float(total - free) / MIB


def table(rows: Sequence[Row]) -> Table:
    """A row per model and cell."""
    heads = ("model", "cell", "p50 ms", "p95 ms", "frames/s", "MiB", "W", "J a frame", "graph replays", "backend")
    out = Table(*heads, box=box.MARKDOWN)
    for row in rows:
        if row.failed:
            out.add_row(row.model, row.cell, *[""] * 7, row.failed)
            continue
        power = [("" if value is None else f"{value:.2f}") for value in (row.watts, row.joules)]
        figures = (f"{row.p50:.1f}", f"{row.p95:.1f}", f"{row.frames_per_second:.1f}", f"{row.memory:.0f}")
        out.add_row(row.model, row.cell, *figures, *power, str(row.replays), row.backend)
    return out


def projections(found: Sequence[Bundle]) -> Table:
    """Least milliseconds by module: a projection from data sheets, no measurement."""
    out = Table("PROJECTION, not measured: model", "cell", *roofline.JETSONS, "bound on Orin Nano by", box=box.MARKDOWN)
    for bundle in found:
        for lr, dsize, cameras in CELLS:
            work = roofline.of(bundle, lr, dsize, cameras)
            floors = {name: card.floors(work) for name, card in roofline.JETSONS.items()}
            first = next(iter(floors.values()))
            cells = [f"≥ {max(values.values()):.2f} ms" for values in floors.values()]
            row = Row(bundle.name, "", lr, dsize, cameras)
            out.add_row(bundle.name, row.cell, *cells, max(first, key=lambda name: first[name]))
    return out


def plot(rows: Sequence[Row], psnr: dict[str, float], path: Path) -> str:
    """PSNR over latency, a point for each model whose PSNR is known; a message with the file, or why there is none."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "no plot: pip install matplotlib"
    lr, out, cameras = CELLS[3]
    points = [
        (row.p50, psnr[row.model], row.model)
        for row in rows
        if (row.lr, row.out, row.cameras) == (lr, out, cameras) and row.model in psnr and not row.failed
    ]
    if not points:
        return "no plot: no model's PSNR is known, give --psnr NAME=dB"
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for p50, decibels, name in points:
        axes.plot(p50, decibels, "o")
        axes.annotate(f" {name}", (p50, decibels))
    axes.set_xlabel(f"milliseconds, {lr[0]}x{lr[1]} → {out[0]}x{out[1]} (p50)")
    axes.set_ylabel("PSNR, dB")
    axes.set_xscale("log")
    figure.savefig(path)
    return f"plot: {path}"


def known_psnr(found: Sequence[Bundle], given: Sequence[str]) -> dict[str, float]:
    """PSNR by model: as given, else of Set5 at ×4 from the quality card."""
    known = {}
    for bundle in found:
        scores = bundle.quality.get("scores", {}).get("Set5", {}).get("x4", {}).get("model", {})
        if "psnr_db" in scores:
            known[bundle.name] = float(scores["psnr_db"])
    for text in given:
        name, _, value = text.partition("=")
        try:
            known[name] = float(value)
        except ValueError:
            raise InputError(f"--psnr {text!r}: write it as NAME=dB, liif=27.73") from None
    return known


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench jetson", description=__doc__)
    top.add_argument("model", nargs="*", metavar="MODEL", help="bundles or shipped models (default: see above)")
    top.add_argument("--backend", default="auto", help="as diinn-run takes it (default: auto)")
    top.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="of TensorRT engines")
    for name in ("--cuda-graphs", "--zero-copy"):
        top.add_argument(name, action=argparse.BooleanOptionalAction, help="as diinn-run takes it")
    top.add_argument("--seconds", type=float, default=5, help="each cell is measured for so long (default 5)")
    top.add_argument("--least", type=int, default=20, help="runs of a cell at least (default 20)")
    top.add_argument(
        "--soak", type=float, default=30, help="seconds of work before each model's first cell (default 30)"
    )
    top.add_argument(
        "--psnr", nargs="+", default=[], metavar="NAME=dB", help="for the plot, where a bundle has no scores"
    )
    top.add_argument("--out", type=Path, metavar="NAME.json", help="write NAME.json, NAME.md and NAME.png")
    return top


def run(args: argparse.Namespace, board: Board | None = None) -> int:
    """Measure all, print, keep."""
    board = board or Board()
    check_output(args.out, ".json")
    names = args.model or [*sorted(map(str, COMPARISON.glob(f"*{bundles.SUFFIX}"))), *bundles.shipped()]
    found = [bundles.load(name) for name in names]
    psnr = known_psnr(found, args.psnr)
    facts = dict(doctor.machine()) | board.facts()
    for name, value in facts.items():
        print(f"{name:<14} {value}")
    print(
        "temperatures  ", ", ".join(f"{zone} {t:.0f} °C" for zone, t in board.temperatures().items()) or "not readable"
    )
    rows: list[Row] = []
    try:
        for bundle in found:
            try:
                for row in measure(bundle, args.backend, args.precision, args, board):
                    rows.append(row)
                    print(f"{bundle.name} {row.cell}: {row.failed or f'{row.p50:.1f} ms'}", file=sys.stderr)
            except DiinnError as error:
                rows.append(Row(bundle.name, "", *CELLS[0], failed=str(error)))
    finally:
        report(args, board, facts, rows, found, psnr)
    return int(any(row.failed for row in rows))


def report(
    args: argparse.Namespace,
    board: Board,
    facts: dict[str, str],
    rows: Sequence[Row],
    found: Sequence[Bundle],
    psnr: dict[str, float],
) -> None:
    """Tables on the screen; with ``--out`` as JSON, Markdown and picture too."""
    warnings = sorted({warning for row in rows for warning in row.warnings})
    parts = [table(rows), *(f"WARNING: {warning}" for warning in warnings), projections(found)]
    for part in parts:
        Console(width=180).print(part)
    if args.out is None:
        return
    outcome = plot(rows, psnr, args.out.with_suffix(".png"))
    print(outcome)
    kept = {
        "facts": facts,
        "temperatures_at_end": board.temperatures(),
        "psnr_db": psnr,
        "warnings": warnings,
        "rows": [asdict(row) for row in rows],
    }
    args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    with args.out.with_suffix(".md").open("w", encoding="utf-8") as file:
        file.write("\n".join(f"- {name}: {value}" for name, value in facts.items()) + f"\n- {outcome}\n\n")
        for part in parts:
            Console(file=file, width=180).print(part)
