"""DIINN beside LIIF and Meta-SR, and its six variants: same encoder, width, photographs, steps and seeds.

Trains what is missing (a stopped run is resumed), exports, measures quality and latency, and prints one table.
``--out`` keeps everything; ``--jobs`` runs train at the same time.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from diinn.benchmarks import scores, speed
from diinn.benchmarks.tables import VARIANTS
from diinn.export import writer
from diinn.runtime.backends.base import BackendOptions
from diinn.runtime.errors import DiinnError, InputError
from diinn.runtime.super_resolver import SuperResolver
from diinn.runtime.util.command_line import Parser
from diinn.train import checkpoint, config, curve, protocol
from diinn.train.photographs import find_images
from rich import box
from rich.console import Console
from rich.table import Table

SCALES = (2.0, 3.0, 4.0, 3.14, 8.0)


@dataclass(frozen=True)
class Method:
    """A decoder and the seeds it is trained from; the bundle of the first is timed, and kept."""

    name: str
    decoder: dict[str, Any]
    seeds: tuple[int, ...]

    def folder(self, out: Path, seed: int) -> Path:
        return out / f"{self.name}-{seed}"


def methods(settings: config.RunConfig, seeds: Sequence[int]) -> list[Method]:
    """The three decoders from all seeds, DIINN's other variants from the first, at the width of ``settings``."""
    size = {"depth": getattr(settings.model.decoder, "depth", 4), "width": settings.model.decoder.width}
    rivals = [
        Method("diinn", {"name": "diinn", **size}, tuple(seeds)),
        Method("liif", {"name": "liif", **size}, tuple(seeds)),
        Method("metasr", {"name": "metasr", "width": size["width"]}, tuple(seeds)),
    ]
    variants = [
        Method(f"diinn-{letter}", {"name": "diinn", **size, "modulation": m, "init_q": q}, tuple(seeds[:1]))
        for (m, q), letter in VARIANTS.items()
    ]
    return rivals + variants


def train(method: Method, seed: int, settings: Path, data: Sequence[Path], out: Path) -> None:
    """Run, or go on with, one training unless it is done."""
    folder = method.folder(out, seed)
    folder.mkdir(parents=True, exist_ok=True)
    last = folder / "last.pth"
    values = {"extends": str(settings.resolve()), "model": {"decoder": method.decoder}, "seed": seed}
    (folder / "run.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    if last.exists():
        done, wanted = checkpoint.load(last), config.read(folder / "run.yaml")
        if done.run == config.plain(wanted) and done.step == wanted.optim.steps:
            return
    command = [sys.executable, "-m", "diinn.train.main", "fit", "-c", str(folder / "run.yaml"), "--no-progress"]
    command += ["--data", *map(str, data), "--out", str(folder)]
    if (folder / "resume.ckpt").exists():
        command.append("--resume")
    with (folder / "train.log").open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=log, check=False).returncode
    if code:
        raise DiinnError(f"training {folder} ended with exit code {code}: see {folder / 'train.log'}")
    print(f"{folder}: trained", flush=True)


def measure(
    runs: Sequence[tuple[Method, int]], sets: Sequence[Path], out: Path
) -> dict[tuple[str, int], list[scores.Row]]:
    """Scores of every run by (method, seed): from its file if there is one, the others all in one pass."""
    found = {(method.name, seed): _known_scores(method.folder(out, seed), sets) for method, seed in runs}
    missing = {f"{m.name}-{seed}": (m, seed) for m, seed in runs if found[m.name, seed] is None}
    with ExitStack() as stack:
        upscalers = {
            name: stack.enter_context(scores.open_upscaler(str(m.folder(out, seed) / "last.pth")))
            for name, (m, seed) in missing.items()
        }
        rows = scores.evaluate_sets(upscalers, sets, SCALES) if upscalers else []
    for name, (method, seed) in missing.items():
        mine = [replace(r, method=method.name) if r.method == name else r for r in rows]
        mine = [r for r in mine if r.method in (method.name, scores.BICUBIC)]
        (method.folder(out, seed) / "scores.csv").write_text(scores.to_csv(mine), encoding="utf-8")
        found[method.name, seed] = mine
    return {key: rows for key, rows in found.items() if rows}


def _known_scores(folder: Path, sets: Sequence[Path]) -> list[scores.Row] | None:
    """The scores of an earlier measurement of these sets, if it is younger than the weights."""
    file = folder / "scores.csv"
    if not file.exists() or file.stat().st_mtime <= (folder / "last.pth").stat().st_mtime:
        return None
    rows = scores.from_csv(file.read_text(encoding="utf-8"))
    fits = list(scores.sets(rows)) == [s.resolve().name for s in sets] and scores.scales(rows) == list(SCALES)
    return rows if fits else None


def latencies(everything: Sequence[Method], out: Path, seconds: float) -> dict[str, tuple[float, float, float]]:
    """(encode, decode, total) ms of every method's bundle in the runtime, taking turns."""
    with ExitStack() as stack:
        entries = {}
        for method in everything:
            folder = method.folder(out, method.seeds[0])
            bundle = out / "bundles" / f"{method.name}.diinn"
            if not bundle.exists() or bundle.stat().st_mtime < (folder / "last.pth").stat().st_mtime:
                writer.export(folder / "last.pth", bundle)
            resolver = stack.enter_context(SuperResolver.open(bundle))
            entries[method.name] = speed.in_runtime(resolver, *speed.CAMERA)
        return speed.alternate(entries, 3, seconds)


def table(
    everything: Sequence[Method],
    rows: dict[tuple[str, int], list[scores.Row]],
    times: dict[str, tuple[float, float, float]],
    out: Path,
) -> Table:
    """A row per method: size, cost, latency, and PSNR by set and scale with its spread over the seeds."""
    first = next(iter(rows.values()))
    cases = [(name, scale) for name in scores.sets(first) for scale in scores.scales(first)]
    heads = ("method", "seeds", "parameters", "multiply-adds a query", "encode ms", "decode ms")
    shown = Table(*heads, *(f"{name} ×{scale:g}" for name, scale in cases), box=box.MARKDOWN)
    for column in shown.columns[1:]:
        column.justify = "right"
    bicubic = [f"{scores.mean(first, name, scale, scores.BICUBIC).psnr:.2f}" for name, scale in cases]
    shown.add_row("bicubic", "", "", "", "", "", *bicubic)
    for method in everything:
        model = checkpoint.load(method.folder(out, method.seeds[0]) / "last.pth").model
        encode, decode, _ = times[method.name]
        values = []
        for name, scale in cases:
            found = [scores.mean(rows[method.name, seed], name, scale, method.name).psnr for seed in method.seeds]
            spread = f" ±{np.std(found, ddof=1):.2f}" if len(found) > 1 else ""
            values.append(f"{np.mean(found):.2f}{spread}")
        count = sum(p.numel() for p in model.parameters())
        shown.add_row(
            method.name,
            str(len(method.seeds)),
            f"{count:,}",
            f"{model.decoder.multiply_adds:,}",
            f"{encode:.1f}",
            f"{decode:.1f}",
            *values,
        )
    return shown


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = Parser(prog="diinn-bench comparison", description=__doc__)
    top.add_argument("-c", "--config", type=Path, required=True, metavar="FILE.yaml", help="settings of every run")
    top.add_argument("--data", type=Path, nargs="+", required=True, metavar="FOLDER", help="training images")
    top.add_argument("--sets", type=Path, nargs="+", required=True, metavar="FOLDER", help="sets to measure on")
    top.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where runs and results are kept")
    top.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the three decoders (default 0 1 2)")
    top.add_argument("--jobs", type=int, default=1, help="runs that train at the same time (default 1)")
    top.add_argument("--seconds", type=float, default=30, help="how long latency is measured (default 30)")
    top.add_argument("--train-only", action="store_true", help="stop when the runs are trained")
    return top


def run(args: argparse.Namespace) -> int:
    """Train, measure, print."""
    settings = config.read(args.config)
    if len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds {' '.join(map(str, args.seeds))}: one is given twice")
    find_images(*args.data)
    scores.check_sets(args.sets)
    everything = methods(settings, args.seeds)
    runs = [(method, seed) for method in everything for seed in method.seeds]
    with ThreadPoolExecutor(max(1, args.jobs)) as pool:
        list(pool.map(lambda r: train(r[0], r[1], args.config, args.data, args.out), runs))
    if args.train_only:
        return 0
    rows = measure(runs, args.sets, args.out)
    times = latencies(everything, args.out, args.seconds)
    threads, (lr, size) = BackendOptions().thread_count, speed.CAMERA
    head = (
        f"Protocol: {protocol.PROTOCOL}.\n{settings.optim.steps} steps of {args.config.name}; PSNR in dB, ± is the "
        f"standard deviation over seeds; latency of {lr[0]}x{lr[1]} → {size[0]}x{size[1]} in "
        f"the runtime, {threads} threads, medians, taking turns.\n"
    )
    shown = table(everything, rows, times, args.out)
    with (args.out / "comparison.md").open("w", encoding="utf-8") as file:
        file.write(head)
        Console(file=file, width=400).print(shown)
    print(head)
    Console(width=400).print(shown)
    curve.draw_together({f"{m.name}-{seed}": m.folder(args.out, seed) for m, seed in runs}, args.out / "curves.png")
    summary = {name: dict(zip(("encode_ms", "decode_ms", "total_ms"), t, strict=True)) for name, t in times.items()}
    (args.out / "latency.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 0
